"""The claims of the paper, and ours: the entries of the protocol, each with the function that measures it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from weight_decay.errors import UserError
from weight_decay.report.claims import language, slopes, vision
from weight_decay.report.claims.declared import cells_missing
from weight_decay.report.claims.protocol import protocol
from weight_decay.report.claims.verdict import (
    DECIDED,
    NATS,
    POINTS,
    Claim,
    Measure,
    Result,
    Unit,
    Verdict,
    judged,
    not_run,
    with_false_discoveries,
)
from weight_decay.report.tables.read import Tables, scales_of, tables_of

SCALES = ("micro", "small", "paper")
UNITS = {
    "points": POINTS,
    "nats": NATS,
    "ln": Unit("in ln", digits=2),
    "cosine": Unit("cosine", digits=2),
    "share": Unit("of the runs", digits=2),
    "lost": Unit("%", 100.0, 2),
}
WHOLE, PER_MATRIX = {"schedule__norm": "whole"}, {"schedule__norm": "per_matrix"}
PLAIN = {"model__qk_norm": None, "duration": None, "optimizer__lr": None}
QK = {"model__qk_norm": "True"}
GENTLE = {"duration": "4000 steps"}
LONGER = {"duration": "3000 steps", "model__qk_norm": None}


def _gentle(tables: Tables) -> language.Measured:
    """Matching at the gentler rate: 4,000 steps at micro, 3,000 at small."""
    reference = GENTLE if tables.scale == "micro" else LONGER
    return language.matching(reference, {**reference, **WHOLE})(tables)


MEASURES: dict[str, Measure] = {
    "small_sets": vision.smallest_set,
    "one_pass_vision": vision.one_pass,
    "decay_wins": vision.decay_wins,
    "average_sees_it": vision.average_sees_it,
    "loss_stabilises": vision.loss_stabilises,
    "jacobian_before_drop": vision.jacobian_before_the_drop,
    "norm_is_not_all": vision.norm_is_not_all,
    "decay_wins_real": vision.decay_wins,
    "average_sees_it_real": vision.average_sees_it,
    "loss_stabilises_real": vision.loss_stabilises,
    "jacobian_real": vision.jacobian_before_the_drop,
    "constant_along_product": slopes.constant_along_product,
    "error_product_alone": slopes.error_at_fixed_product,
    "jacobian_falls": slopes.jacobian_falls,
    "jacobian_product_alone": slopes.jacobian_at_fixed_product,
    "noise_scale": slopes.noise_follows_the_loss,
    "finetuned_jacobian": vision.finetuned_jacobian_falls,
    "finetuned_order": slopes.finetuned_order,
    "average_order": slopes.average_order,
    "vgg": vision.decay_wins,
    "resnet34": vision.decay_wins,
    "noise_follows_curvature": vision.noise_follows_curvature,
    "decoupling": vision.decoupling_keeps_the_spectrum,
    "sphere": vision.best_rate_inside,
    "ensemble": vision.ensemble_is_average,
    "higher_middle": language.higher_in_the_middle,
    "lower_end": language.lower_at_the_end,
    "lower_end_strong": language.stronger_decay_at_the_end,
    "lower_end_documents": language.lower_on_documents,
    "tiny_rate": language.tiny_rate_reveals,
    "averaging": language.averaging_gains,
    "matching": language.matching({}, {**WHOLE, "schedule__power": 1.0}),
    "matching_squared": language.squared_matching_diverges,
    "matching_bfloat16": language.matching_in_bfloat16_diverges,
    "divergence": language.bfloat16_costs_more,
    "attention_logits": language.logits_grow,
    "no_gap": language.no_gap,
    "document_gap": language.same_document_gap,
    "layernorm": language.norms_too,
    "l2_penalty": language.penalty_too,
    "sgd_momentum": language.best_decay_at_the_end,
    "constant_rate": language.higher_at_the_end,
    "slower_fall": language.gain_needs_the_fall,
    "bfloat16_foreach": language.decay_is_lost("foreach"),
    "bfloat16_fused": language.decay_is_lost("fused", kept=True),
    "bfloat16_stochastic": language.decay_is_lost("stochastic"),
    "bfloat16_kahan": language.decay_is_lost("kahan"),
    "matching_per_matrix": language.matching(PLAIN, {**PLAIN, **PER_MATRIX}),
    "matching_qk": language.matching(QK, {**QK, **WHOLE}),
    "matching_qk_per_matrix": language.matching(QK, {**QK, **PER_MATRIX}),
    "matching_gentle": _gentle,
}


def _claims() -> tuple[Claim, ...]:
    if without := protocol().entries.keys() - MEASURES.keys():
        raise UserError(f"configs/claims: {', '.join(sorted(without))} has no measure in {__file__}; write it there.")
    return tuple(
        Claim(
            key=key,
            statement=entry["statement"],
            figure=str(entry["figure"]),
            experiment=entry["experiment"],
            measure=MEASURES[key],
            unit=UNITS[entry["unit"]],
            test=entry["test"],
            threshold=float(entry.get("threshold", 0.0)),
            smallest=float(entry.get("smallest", 0.0)),
            margin=float(entry.get("margin", 0.0)),
            endpoint=entry["endpoint"],
            paper=entry.get("paper"),
            reads=entry["reads"],
        )
        for key, entry in protocol().entries.items()
    )


CLAIMS = _claims()


def judged_claims(results: Path) -> list[Result]:
    """Every claim at every scale, in the order of CLAIMS and then of SCALES; "not run" where there are no tables.

    None is decided on an experiment of which a declared cell is missing.
    """
    read: dict[tuple[str, str], Tables] = {}
    found = []
    for claim in CLAIMS:
        for scale in SCALES:
            if scale not in scales_of(results, claim.experiment):
                found.append(not_run(claim, scale))
                continue
            place = (claim.experiment, scale)
            if place not in read:
                read[place] = tables_of(results, *place)
            found.append(judged(claim, read[place]))
    return [on_all_cells(one, read.get((one.claim.experiment, one.scale))) for one in with_false_discoveries(found)]


def on_all_cells(result: Result, tables: Tables | None) -> Result:
    """The result, made inconclusive if `tables` lack a cell that the experiment declares, at the seeds that decide."""
    if tables is None or result.measured is None or result.verdict not in DECIDED:
        return result
    missing = cells_missing(tables, result.measured.seeds[: result.seeds])
    if not missing:
        return result
    return replace(result, verdict=Verdict.INCONCLUSIVE, measured=replace(result.measured, unless=missing))
