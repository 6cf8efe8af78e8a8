"""A plain, honest entry: gradient boosting over five folds, for tables and small images.

It hands in the sample submission at once, and after each fold the mean of the folds so far. The
errors that it prints are of rows that the model had not seen. Each fold is a step with a
checkpoint: a resumed run goes on with the first fold that is missing, and ends the same.
"""

import shutil
import sys
from pathlib import Path

import surroundings
from surroundings import event, say, submit


def main() -> None:
    surroundings.keep_code()
    sample = surroundings.sample_submission()
    if surroundings.IS_RESUMED and surroundings.SUBMISSION.exists():
        say("The submission of an earlier attempt is handed in already.")
    else:
        submit(lambda path: shutil.copyfile(sample, path))
        say("The sample submission is handed in; from here on it can only get better.")
    # Imported late: a submission is there before the libraries are.
    import task

    try:
        improve(task.read(surroundings.DATA, sample, surroundings.MEMORY_BYTES))
    except task.NotUnderstood as reason:
        say(f"This agent can do no better than the sample submission here. {reason}")
    say(surroundings.validate())


def improve(task) -> None:  # type: ignore[no-untyped-def]
    import features
    import targets
    import training
    from checkpoint import Checkpoints

    seed, threads = surroundings.SEED, surroundings.threads()
    say(
        f"To predict: {task.kind.value} ({', '.join(task.targets[:5])}) for {len(task.sample)} "
        f"rows, from {len(task.train)}. Seed {seed}, threads: {threads}, time limit: "
        f"{surroundings.TIME_LIMIT_SECONDS:.0f} s."
    )
    train, test = features.of_task(task, seed)
    say(f"{train.shape[1]} features.")
    answer = task.sample.copy()
    wanted = targets.of_task(task)
    total = len(wanted) * training.FOLDS
    checkpoints = Checkpoints(checkpoint_folder(), fingerprint(seed, len(task.train)))
    step = 0
    for target in wanted:
        known, told, predictions = [], [], []
        for number, split in enumerate(training.splits(target, seed), start=1):
            step += 1
            name = f"{target.name}, fold {number}"
            fold = checkpoints.fold(step)
            is_new = fold is None
            if fold is None:
                if surroundings.seconds_left() <= 0:
                    say("The time is over.")
                    return
                event("step_started", step=step, total=total, name=name)
                fold = training.train_fold(
                    train, test, target, split, seed=seed * total + step, threads=threads
                )
            known.append(target.values[split[1]])
            told.append(fold.held_out_prediction)
            predictions.append(fold.test_prediction)
            for column, values in target.answer(sum(predictions) / len(predictions)).items():
                answer[column] = values
            value = target.measure(known[-1], told[-1])
            if not is_new:
                say(f"{name}: {target.metric} {value:.5f}, from the checkpoint.")
                continue
            submit(lambda path: answer.to_csv(path, index=False))
            say(f"{name}: {target.metric} {value:.5f}, {fold.rounds} rounds.")
            metric = {"name": target.metric, "value": value, "maximize": target.is_higher_better}
            event("step_finished", step=step, total=total, name=name, metric=metric)
            # One that the clock cut short is worse than it could be, and not worth going on from.
            if surroundings.seconds_left() > 0 and checkpoints.keep(step, fold):
                event("checkpoint", step=step, path=surroundings.CHECKPOINT)
        submit(lambda path: answer.to_csv(path, index=False))
        import numpy as np

        overall = target.measure(np.concatenate(known), np.concatenate(told))
        say(f"{target.name}: out-of-fold {target.metric} {overall:.5f}.")
        metric = {"name": target.metric, "value": overall, "maximize": target.is_higher_better}
        event("metric", step=step, metric=metric)


def checkpoint_folder() -> Path | None:
    folder = Path(surroundings.CHECKPOINT) if surroundings.CHECKPOINT else None
    return folder if folder and folder.is_dir() else None


def fingerprint(seed: int, rows: int) -> str:
    import checkpoint
    import training

    code = Path(__file__).parent.glob("*.py")
    settings = {"seed": seed, "rows": rows, "folds": training.FOLDS}
    return checkpoint.fingerprint(surroundings.data_files(), code, settings)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"baseline: {error}")
