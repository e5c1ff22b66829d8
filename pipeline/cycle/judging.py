"""The last stages: a candidate is judged beside those before it, promoted or held, and reported."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from pipeline.cycle.job import Ended, Job
from pipeline.evaluate.embed import Embedding
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.forgetting import forgetting, write_forgetting
from pipeline.evaluate.outcomes import outcomes_file
from pipeline.evaluate.transfer import judge_all, judged_file
from pipeline.ingest.store import Store
from pipeline.ingest.write import replaced
from pipeline.ledger import promotion
from pipeline.ledger.lineage import dumps_of, fed
from pipeline.ledger.records import record_checkpoint, record_evaluation, record_run
from pipeline.ledger.resolutions import HARMLESS
from pipeline.ledger.tables import work
from pipeline.pretrain import is_judged, judge
from pipeline.promote import actor, settle, weigh
from pipeline.report.run_report import write_report
from pipeline.run import Run
from pipeline.stream.batches import named_store
from pipeline.train.checkpoints import Checkpoint, keep


def evaluate_inputs(job: Job) -> Any:
    candidates, stores = _chain(job)
    return {
        "candidates": [RunEncoders.of(one).digest for one in candidates],
        "stores": [store.manifest.digest for store in stores],
    }


def evaluate_candidate(job: Job, digest: str) -> Ended:
    """On its own held-back images, and, with the candidates before it, on those of the dumps before."""
    candidates, stores = _chain(job)
    candidate = candidates[-1]
    if not is_judged(candidate):
        judge(candidate, lambda line: job.tell(f"  {line}"))
    _judged_here(job, candidate, stores[-1])
    said = ""
    if len(candidates) > 1:
        encoders = [RunEncoders.of(one) for one in candidates]
        config, embedding = candidate.experiment.evaluation, Embedding(candidate.experiment.cluster)
        found = judge_all(encoders, stores, _evaluations(job), config, embedding, lambda line: job.tell(f"  {line}"))
        matrix = forgetting(found)
        write_forgetting(matrix, candidate.path)
        of = f"of {len(matrix.stores) - 1} earlier dump(s) {matrix.shown(matrix.mean_of_older)} of {matrix.score}"
        said = f"; forgotten {of}"
    evaluation, file = candidate.evaluation, candidate.evaluation_file
    assert evaluation is not None
    weights = _newest(candidate).digest
    return Ended(
        f"{_headline(candidate)}{said}", str(file), "evaluated",
        record=lambda connection, work_id: record_evaluation(connection, weights, evaluation, file),
    )  # fmt: skip


def _judged_here(job: Job, candidate: Run, store: Store) -> None:
    """Lets what a run was judged on its own store be found where all are."""
    file = judged_file(_evaluations(job), candidate.path.name, store.path.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    for source, target in (  # in this order: an evaluation is never without its outcomes
        (outcomes_file(candidate.evaluation_file), outcomes_file(file)), (candidate.evaluation_file, file),
    ):  # fmt: skip
        with replaced(target) as copy:
            copy.write(source.read_bytes())


def promote_inputs(job: Job) -> Any:
    with job.ledger.reading() as connection:
        names = [promotion.current(connection, name) for name in (job.cycle.champion, job.cycle.base)]
    return {
        "candidate": _newest(_candidate(job)).digest,
        "names": names,
        "stores": [store.manifest.digest for store in _judge_on(job)],
        "tolerance": job.cycle.tolerance,
    }


def promote_candidate(job: Job, digest: str) -> Ended:
    """Champion and base move together, in one transaction; the base alone where the gate found no harm."""
    weighed = weigh(
        job.ledger, _candidate(job), name=job.cycle.champion, stores=_judge_on(job), tolerance=job.cycle.tolerance,
        folder=_evaluations(job), config=_candidate(job).experiment.evaluation,
        tell=lambda line: job.tell(f"  {line}"),
    )  # fmt: skip
    gate, plateau = weighed.gate, Run.open(Path(job.outputs["train"]))
    passed = gate is None or gate.passed
    reason = "promoted by hand" if gate is None else gate.reason
    facts = {"held_for": gate.held_for, "gate": gate.rows()} if gate else {}
    harmless = passed or (gate is not None and gate.held_for == ("target",))
    moves = harmless and _goes_on(job, plateau)

    def record(connection: Connection, work_id: str) -> None:
        if gate is not None:
            settle(connection, weighed)
        if moves:
            _move_base(connection, job, plateau)

    stays = "" if moves or not harmless else f"; {job.cycle.base} stays: other dumps were trained meanwhile"
    if passed:
        said = f"{job.cycle.champion} is {weighed.run.path}: {reason}{stays}"
        return Ended(said, "promoted", "promoted", f"{reason}{stays}", record, facts)
    if harmless:
        why = f"{reason}; no harm in it{stays or ': later dumps go on from it'}"
        return Ended(why, HARMLESS, "held", why, record, facts)
    return Ended(reason, "held", "held", reason, record, facts)


def report_inputs(job: Job) -> Any:
    return {"candidate": _newest(_candidate(job)).digest, "promotion": job.outputs["promote"]}


def report_candidate(job: Job, digest: str) -> Ended:
    page = write_report(_candidate(job))
    return Ended(str(page), str(page))


def _candidate(job: Job) -> Run:
    return Run.open(Path(job.outputs["cooldown"]))


def _newest(run: Run) -> Checkpoint:
    checkpoint = run.newest_checkpoint()
    if checkpoint is None:
        raise ValueError(f"{run.path} has no whole checkpoint any more: restore it")
    return checkpoint


def _evaluations(job: Job) -> Path:
    """Of all candidates on all stores: each is judged on each once."""
    return job.cycle.root / "evaluations"


def _judge_on(job: Job) -> list[Store]:
    return [Store(path) for path in job.cycle.judge_on] or _chain(job)[1]


def _chain(job: Job) -> tuple[list[Run], list[Store]]:
    """Of the newest dumps that the candidate was trained on, directly or before: the candidates, and the stores that
    hold what was held back; both oldest first, the last are its own."""
    plateau = _newest(Run.open(Path(job.outputs["train"]))).digest
    with job.ledger.reading() as connection:
        fed_by = [one for one in dumps_of(fed(connection, plateau)) if one != job.dump.dump_id]
        outputs = [_outputs(connection, one) for one in fed_by]
    earlier = [one for one in outputs if {"curate", "cooldown"} <= set(one)][-job.cycle.compare_dumps + 1 :]
    chain = [*(earlier if job.cycle.compare_dumps > 1 else []), dict(job.outputs)]
    return [Run.open(Path(one["cooldown"])) for one in chain], [named_store(one["curate"]) for one in chain]


def _outputs(connection: Connection, dump_id: str) -> dict[str, str]:
    units = select(work.c.stage, work.c.output).where(work.c.dump_id == dump_id, work.c.state == "done")
    return {stage: output for stage, output in connection.execute(units) if output}


def _goes_on(job: Job, plateau: Run) -> bool:
    """Whether a plateau is the next after the base of now."""
    with job.ledger.reading() as connection:
        base = promotion.current(connection, job.cycle.base)
    return base in (None, plateau.experiment.training.continue_digest, _newest(plateau).digest)


def _move_base(connection: Connection, job: Job, plateau: Run) -> None:
    checkpoint, before = _newest(plateau), promotion.current(connection, job.cycle.base)
    if before == checkpoint.digest:
        return
    if before not in (None, plateau.experiment.training.continue_digest):
        raise promotion.Outrun(f"{job.cycle.base} was moved meanwhile")
    record_run(connection, plateau)
    record_checkpoint(connection, plateau, checkpoint)
    keep(checkpoint.path)
    promotion.promote(
        connection, job.cycle.base, checkpoint.digest, expected=before, actor=actor(),
        reason=f"the plateau of dump {job.dump.admit_no}",
    )  # fmt: skip


def _headline(candidate: Run) -> str:
    """As in: knn_top1 61.3 %, linear_top1 70.2 %."""
    evaluation = candidate.evaluation
    assert evaluation is not None
    shown = [f"{score.name} {score.shown(score.trained)}" for score in evaluation.scores[:2]]
    return ", ".join(shown) or "no labels to judge by"
