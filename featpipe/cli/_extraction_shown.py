"""What ``featpipe extract`` prints: what was done, and what would be done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featpipe.cli._console import human_bytes, human_seconds, say, show_table
from featpipe.cli._workers import on_workers

if TYPE_CHECKING:
    from featpipe.extraction import DryRun, Extraction, NonFinite
    from featpipe.stimuli import StimulusSet


def extraction_json(stimuli: StimulusSet, cache: str, done: Extraction) -> dict[str, Any]:
    """Return what an extraction did, for machines."""
    return {
        "cache": cache,
        "stimuli": done.stimuli,
        "n_stimuli": done.n_stimuli,
        "computed": done.n_computed,
        "reused": done.n_reused,
        "seconds": round(done.seconds, 3),
        "images_per_second": round(_rate(done), 2),
        "device": done.device,
        "batch_size": done.batch_size,
        "workers": done.n_workers,
        "weights": done.card.weights,
        "weights_label": done.card.weights_label,
        "skipped": [list(item) for item in stimuli.skipped],
        "arrays": _arrays(done),
        "non_finite": None if done.non_finite is None else [_non_finite_json(bad) for bad in done.non_finite],
    }


def say_extraction(done: Extraction) -> None:
    """Print what an extraction did."""
    arrays = _arrays(done)
    view, of = _view_column(arrays), _in_views(done.n_stimuli, arrays)
    show_table(
        ["layer", "reduce", *view, "key"],
        [(a["layer"], a["reduce"], *(str(a[name]) for name in view), a["key"][:12]) for a in arrays],
    )
    if not done.n_computed and not done.n_reused:
        say(f"Nothing to do: all {of} are cached ({human_seconds(done.seconds)}).")
    else:
        say(
            f"{done.n_computed} images computed and {done.n_reused} copied of {of}, "
            f"{human_seconds(done.seconds)}, {_rate(done):.1f} images/s, "
            f"{done.device or 'no device'}{on_workers(done)}."
        )
    _say_non_finite(done.non_finite or ())


def _say_non_finite(found: Sequence[NonFinite]) -> None:
    rows = [_non_finite_json(bad) for bad in found]
    if rows:
        say("Kept, though most estimators refuse them:")
        columns = ["layer", "reduce", *_view_column(rows), "nan", "infinite", "images", "first"]
        shown = [[str(row[name]) for name in columns] for row in rows]
        show_table(columns, shown, right=["nan", "infinite", "images"])


def _non_finite_json(bad: NonFinite) -> dict[str, Any]:
    return {
        "key": bad.target.key,
        "layer": bad.target.spec.layer_label,
        "reduce": str(bad.target.spec.reduction),
        "view": bad.target.spec.view,
        "nan": bad.n_nan,
        "infinite": bad.n_infinite,
        "images": bad.n_images,
        "first": bad.first,
    }


def _arrays(done: Extraction) -> list[dict[str, Any]]:
    return [
        {
            "key": t.key,
            "layer": t.spec.layer_label,
            "reduce": str(t.spec.reduction),
            "view": t.spec.view,
            "spec": t.spec.to_json(),
        }
        for t in done.targets
    ]


def _rate(done: Extraction) -> float:
    return done.n_computed / done.seconds if done.seconds else 0.0


def dry_run_json(plan: DryRun) -> dict[str, Any]:
    """Return what an extraction would cost, for machines."""
    names = ("n_stimuli", "bytes_on_disk", "peak_memory", "seconds", "device", "batch_size")
    return {"layers": _planned(plan), **{name: getattr(plan, name) for name in names}}


def say_dry_run(plan: DryRun) -> None:
    """Print what an extraction would cost."""
    rows = _planned(plan)
    view = _view_column(rows)
    show_table(
        ["layer", "reduce", *view, "shape", "bytes/image", "on disk", "cached"],
        [
            (
                row["layer"],
                row["reduce"],
                *(str(row[name]) for name in view),
                "×".join(map(str, row["shape"])),
                human_bytes(row["bytes_per_image"]),
                human_bytes(row["bytes_per_image"] * plan.n_stimuli),
                "yes" if row["cached"] else "no",
            )
            for row in rows
        ],
        right=["bytes/image", "on disk"],
    )
    say(
        f"{_in_views(plan.n_stimuli, rows)}; at most {human_bytes(plan.bytes_on_disk)} on disk; "
        f"about {human_bytes(plan.peak_memory)} of memory; about {human_seconds(plan.seconds)} on {plan.device} "
        f"with batches of {plan.batch_size}."
    )


def _planned(plan: DryRun) -> list[dict[str, Any]]:
    return [
        {
            "layer": t.spec.layer_label,
            "reduce": str(t.spec.reduction),
            "view": t.spec.view,
            "shape": list(shape),
            "bytes_per_image": size,
            "cached": cached,
        }
        for t, shape, size, cached in zip(
            plan.targets, plan.row_shapes, plan.bytes_per_row, plan.cached, strict=True
        )
    ]


def _view_column(rows: list[dict[str, Any]]) -> list[str]:
    """Return the columns of a table that views need: none without them."""
    return ["view"] if any(row["view"] for row in rows) else []


def _in_views(n_stimuli: int, rows: list[dict[str, Any]]) -> str:
    n_views = len({row["view"] for row in rows})
    return f"{n_stimuli} stimuli" + (f" in {n_views} views" if n_views > 1 else "")
