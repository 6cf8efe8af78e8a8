"""A run that was lost with no try left gets the score of what was copied aside in time.

Nobody is left who could collect it, so the host service of a host with the answers grades it: as a
re-grade that nobody had to ask for.
"""

import structlog

from runs.models import Attempt, Regrade, RegradeJob, Run
from runs.models.regrades import target_of, was_lost

logger = structlog.get_logger(__name__)

BY = "mlebench-web"
REASON = "It was lost with no try left; a submission was copied aside before."


def ask_for(attempt: Attempt) -> RegradeJob | None:
    """Have the run graded where this sealed attempt was its last try; None where there is nothing.

    In the transaction of the seal: what is lost is not lost twice.
    """
    run = Run.objects.get(pk=attempt.run_id)
    if attempt.cancel_requested_at or target_of(run) != attempt or not was_lost(attempt):
        return None
    regrade = Regrade.objects.create(by=None, by_name=BY, reason=REASON)
    logger.info("run.cut_short", run=run.pk, attempt=attempt.pk)
    return RegradeJob.objects.create(regrade=regrade, run=run, attempt=attempt, before=None)
