"""What requests carry: strict types, and no field that we do not know."""

from typing import Annotated, Any

from ninja import Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from runs.request import RunGroupRequest

# PostgreSQL takes no larger id, and a list of all runs of all groups is nobody's re-run.
LARGEST_ID = 2**63 - 1
IDS_AT_MOST = 10_000

Limit = Annotated[int, Query(200, ge=1, le=1000, description="items on a page")]
Offset = Annotated[int, Query(0, ge=0, le=10**9, description="items to leave out")]


def without_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul", "The text has a NUL character, which no database holds")
    return text


Text = Annotated[str, AfterValidator(without_nul)]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def no_unknown_field(cls, data: Any) -> Any:
        if isinstance(data, dict) and (names := sorted(set(data) - set(cls.model_fields))):
            raise PydanticCustomError(
                "unknown_fields",
                "There is no such field.",
                {"names": names, "allowed": list(cls.model_fields)},
            )
        return data


class NewRunGroup(Asked):
    """A split or competitions; everything else that is left out is as usual."""

    agent: Text = Field(max_length=200, examples=["baseline"])
    split: Text | None = Field(default=None, max_length=100, examples=["demo"])
    competitions: list[Text] | None = Field(default=None, max_length=1000)
    container_config: Text | None = Field(default=None, max_length=100)
    seeds: int = Field(default=1, description="how many seeds", examples=[3])
    experiment: Text | None = Field(
        default=None, description="a leaderboard row; made when unknown; left out: the agent's name"
    )
    time_limit_s: int | None = None
    step_timeout_s: int | None = None
    priority: int = Field(default=0, description="higher goes first")
    env: dict[str, str] = Field(default={}, max_length=100)
    acknowledge_no_gpu: bool = False

    def request(self) -> RunGroupRequest:
        return RunGroupRequest(
            **{**self.model_dump(), "competitions": tuple(self.competitions or ())}
        )


class Rerun(Asked):
    mode: Text = Field(default="restart", examples=["restart", "resume"])
    reason: Text = Field(default="", max_length=2000)
    overrides: dict[str, Any] = Field(
        default={},
        description="in place of the group's settings: host (its name), gpu (class, as A10), "
        "time_limit_s, step_timeout_s, memory_bytes",
        examples=[{"host": "box-2", "time_limit_s": 86400}],
    )


class RerunOfGroup(Rerun):
    which: Text | list[Annotated[int, Field(ge=1, le=LARGEST_ID)]] = Field(
        description='"failed", "infrastructure", or ids of runs',
        examples=["failed"],
    )


class Regrade(Asked):
    reason: Text = Field(default="", max_length=500)


class RegradeOfGroup(Regrade):
    which: Text | list[Annotated[int, Field(ge=1, le=LARGEST_ID)]] = Field(
        default="all", description='"all", or ids of runs', examples=["all"]
    )


class CancelGroup(Asked):
    queued_only: bool = Field(default=False, description="let finish what has started")


class Drain(Asked):
    move: bool = Field(
        default=False, description="save, stop and queue elsewhere what can go on from a checkpoint"
    )


class Nothing(Asked):
    pass
