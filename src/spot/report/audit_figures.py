"""The audit's two figures: how much corrections change, and how the answers diverge around the first edit."""

from collections.abc import Sequence

from spot.audit.summary import BINS, AuditSummary, EditSummary, ProfileBin
from spot.report.figures import Drawing, drawing
from spot.report.prose import whole
from spot.report.sheet import Mark, Sheet, round_ticks
from spot.report.svg import SENTINEL

FEWEST = 10
"""Tokens in a bin below which its mean is not drawn."""

_LEFT, _RIGHT = 48, 12


def audit_drawings(summary: AuditSummary) -> list[Drawing]:
    """The figures that an audit has something to show in."""
    return [draw_edits(summary.edits), *([draw_profile(summary)] if summary.likelihood else [])]


def draw_edits(edits: EditSummary) -> Drawing:
    """Two histograms over all pairs: eq. 1's change ratio (the paper's figure 5), and the edit distance."""
    told = (
        f"{whole(edits.change_ratio.n)} pairs; median change ratio {edits.change_ratio.median:.2f}, median edit "
        f"distance {edits.edit_distance.median:.2f}"
    )
    return drawing("audit-change", "How much the pairs change", told, lambda width: _edits(edits, width))


def draw_profile(summary: AuditSummary) -> Drawing:
    """Negative log-likelihood of both answers by distance from the first edit; below it KL, where it was measured."""
    assert summary.likelihood is not None
    likelihood = summary.likelihood
    bins = [row for row in likelihood.profile if min(row.chosen_tokens, row.rejected_tokens) >= FEWEST]
    bins = bins or likelihood.profile
    at_edit = next((row for row in bins if row.first == 0), None)
    told = f"{whole(likelihood.pairs)} pairs under {likelihood.student}"
    if at_edit and at_edit.chosen_nll is not None and at_edit.rejected_nll is not None:
        told += f"; at the first edit {at_edit.chosen_nll:.2f} nats chosen, {at_edit.rejected_nll:.2f} rejected"
    if likelihood.kl is not None:
        told += f"; KL from the first edit on {likelihood.kl.from_edit:.3g} nats a token"
    return drawing("audit-divergence", "Around the first edit", told, lambda width: _profile(bins, width))


def _edits(edits: EditSummary, width: int) -> Sheet:
    top, height, between = 52, 96, 58
    panels = [
        ("Change ratio (eq. 1)", edits.change_ratio_bins, edits.change_ratio.median),
        ("Edit distance", edits.edit_distance_bins, edits.edit_distance.median),
    ]
    sheet = Sheet(width, top + 2 * height + between + 36)
    across = sheet.width - _LEFT - _RIGHT
    tallest = max(1, *(max(counts) for _, counts, _ in panels))
    slot, unit = across / BINS, height / tallest
    for index, (label, counts, middle) in enumerate(panels):
        base = top + index * (height + between) + height
        sheet.text((0, base - height - 34), label, bold=True)
        for tick in round_ticks(tallest, 3):
            sheet.line((_LEFT, base - tick * unit), (sheet.width - _RIGHT, base - tick * unit), "line")
            sheet.note((_LEFT - 8, base - tick * unit), whole(tick), "right")
        for place, count in enumerate(counts):
            sheet.bar((_LEFT + place * slot + 1, base - count * unit), slot - 2, count * unit, "chosen")
        x = _LEFT + middle * across
        sheet.line((x, base - height - 16), (x, base), "ink", 1.2)
        sheet.note((x + (6 if middle < 0.7 else -6), base - height - 11), f"median {middle:.2f}",
                   "left" if middle < 0.7 else "right")  # fmt: skip
    for tick in range(0, 11, 2):
        sheet.note((_LEFT + tick / 10 * across, sheet.height - 22), f"{tick / 10:g}", "center")
    return sheet


def _profile(bins: Sequence[ProfileBin], width: int) -> Sheet:
    wide = width > 400
    title, height, between = (22 if wide else 38), 130, 46
    top = title + 12
    with_kl = any(row.chosen_kl is not None for row in bins)
    sheet = Sheet(width, top + height + (height + between if with_kl else 0) + 44)
    nll = [
        ("chosen", "chosen", [row.chosen_nll for row in bins]),
        ("rejected", "rejected", [row.rejected_nll for row in bins]),
    ]
    panels = [("Negative log-likelihood, student", nll)]
    if with_kl:
        panels.append(("KL(trained ‖ student), chosen", [("KL", "shift", [row.chosen_kl for row in bins])]))
    edit = next((place for place, row in enumerate(bins) if row.last >= 0), 0)
    for index, (label, curves) in enumerate(panels):
        y = top + index * (height + between)
        axes = sheet.plot(_LEFT, y, sheet.width - _LEFT - _RIGHT, height)
        for name, role, values in curves:
            points = [(place, value) for place, value in enumerate(values) if value is not None]
            axes.plot(
                [place for place, _ in points],
                [value for _, value in points],
                color=SENTINEL[role],
                linewidth=1.8,
                linestyle=(0, (2.6, 1.6)) if name == "rejected" else "-",
                marker="o",
                markersize=3.5,
                clip_on=False,
            )
        axes.axvline(edit - 0.5, color=SENTINEL["muted"], linewidth=1, zorder=1.5)
        axes.set_xlim(-0.6, len(bins) - 0.4)
        axes.set_ylim(bottom=0)
        axes.margins(y=0.08)
        marks = _labelled(bins, edit, 12 if wide else 7)
        axes.set_xticks(marks, [_offset(bins[place]) for place in marks])
        axes.tick_params(labelbottom=index == len(panels) - 1)
        sheet.text((0, y - (22 if index else title)), label, bold=True)
        if len(curves) > 1:
            entries: list[tuple[str, str, Mark]] = [
                (name, role, "dashes" if name == "rejected" else "line") for name, role, _ in curves
            ]
            sheet.key(240 if wide else _LEFT, y - (22 if wide else 16), entries)
    sheet.note((_LEFT + (sheet.width - _LEFT - _RIGHT) / 2, sheet.height - 10), "tokens from the first edit", "center")
    return sheet


def _labelled(bins: Sequence[ProfileBin], edit: int, most: int) -> list[int]:
    """The places whose bins are labelled: the edit, and others evenly."""
    step = max(1, -(-len(bins) // most))
    return [place for place in range(len(bins)) if (place - edit) % step == 0]


def _offset(row: ProfileBin) -> str:
    """A bin by its end that is further from the edit: `−16`, `0`, `8`."""
    far = row.first if row.first < 0 else row.last
    return str(far).replace("-", "\N{MINUS SIGN}")
