"""The report of an evaluation: JSON for programs, Markdown or one HTML file for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qgis_iic.engine.outputs import write_errors, write_whole
from qgis_iic.protocol.errors import IicError
from qgis_iic.training.document import Block, Heading, Paragraph, Picture, Table, png, to_html, to_markdown
from qgis_iic.training.evaluation import mean_over, supervised_gap
from qgis_iic.training.pictures import LEGEND, Example

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "building_iou": "building IoU",
    "building_f1": "F1",
    "mean_iou": "mean IoU",
    "object_precision": "object precision",
    "object_recall": "object recall",
    "object_f1": "object F1",
}

_CONFUSION = {
    "true_positive": "building found",
    "false_positive": "background taken for building",
    "false_negative": "building missed",
    "true_negative": "background found",
}


def write_report(path: Path, title: str, figures: dict[str, Any], examples: Mapping[str, Sequence[Example]]) -> None:
    """Writes what the suffix asks for; the pictures of NAME.md lie beside it in NAME_pictures.

    Args:
        path: with the suffix .json, .md or .html.
        title: of the document.
        figures: see `benchmark.Benchmark`.
        examples: by the name of their setting.

    Raises:
        OutputNotWritable, DiskFull: see `engine.outputs.write_whole`.
    """
    if path.suffix.lower() == ".json":
        write_whole(path, (json.dumps(figures, indent=2) + "\n").encode())
        return
    blocks = report_blocks(title, figures, examples)
    if path.suffix.lower() == ".html":
        write_whole(path, to_html(title, blocks).encode())
        return
    folder = path.with_name(f"{path.stem}_pictures")
    try:
        for block in blocks:
            if isinstance(block, Picture):
                with write_errors(folder):
                    folder.mkdir(exist_ok=True)
                write_whole(folder / f"{block.name}.png", png(block.pixels))
        write_whole(path, (to_markdown(blocks, folder.name) + "\n").encode())
    except IicError:
        with suppress(OSError):  # it holds pictures
            folder.rmdir()
        raise


def report_blocks(title: str, figures: dict[str, Any], examples: Mapping[str, Sequence[Example]]) -> list[Block]:
    """All that is known of an evaluation: tables as in a model's card, and for each setting what is behind them."""
    blocks: list[Block] = [Heading(1, title), *_summary_blocks(figures)]
    for number, setting in enumerate(figures["settings"], start=1):
        blocks += _setting_blocks(setting)
        blocks += _detail_blocks(setting)
        blocks += _picture_blocks(number, setting["name"], examples.get(setting["name"], ()))
    return blocks


def figure_blocks(figures: dict[str, Any]) -> list[Block]:
    """The tables of a model's card; none without figures."""
    if not figures.get("settings"):
        return []
    return _summary_blocks(figures) + [block for setting in figures["settings"] for block in _setting_blocks(setting)]


def _summary_blocks(figures: dict[str, Any]) -> list[Block]:
    draws, side = figures["draws"], figures["draws"]["tile_size"]
    if any(setting.get("drawn_share") for setting in figures["settings"]):
        scattered = any(setting.get("drawn_kind") == "features" for setting in figures["settings"])
        features = ", or where labels are too scattered for them features of either kind" if scattered else ""
        text = (
            f"Mean and standard deviation over {draws['count']} draws of {draws['tiles']} labelled tiles of "
            f"{side} x {side} pixels{features} (two thirds of {'those' if scattered else 'the tiles'} there are, where "
            "that is fewer), scored on ground that was not matched on. All methods get the same "
            f"{'labels' if scattered else 'tiles'}."
        )
    else:
        text = "The model as it is: nothing was matched for this. On labels that it was made with, it looks too good."
    blocks: list[Block] = [Heading(2, "Figures"), Paragraph(f"{text} {figures['note']}".rstrip())]
    if steps := figures.get("supervised_steps"):
        blocks.append(
            Paragraph(
                f"The supervised network has the architecture of the model, random weights to begin with, and {steps} "
                "steps of training on these labels alone."
            )
        )
    for kind, ground in (("own", "other ground of the same place"), ("cross", "another place")):
        settings = [setting for setting in figures["settings"] if setting["kind"] == kind]
        if len(settings) > 1:
            blocks += [Heading(3, f"Mean over places, matched on {ground}"), *_row_blocks(mean_over(settings))]
    return blocks


def _setting_blocks(setting: dict[str, Any]) -> list[Block]:
    share = f"{100 * setting['building_share']:.1f} % of {setting['labelled_pixels']} labelled pixels are building."
    if drawn := setting.get("drawn_share"):
        share += f" A draw holds {100 * drawn:.1f} % of the labelled pixels to match on."
    return [Heading(3, setting["name"]), Paragraph(share), *_row_blocks(setting["rows"])]


def _row_blocks(rows: Sequence[dict[str, Any]]) -> list[Block]:
    """The table, and how far IIC is from the supervised network where there is one."""
    gap = supervised_gap(rows)
    if not gap:
        return [_table(rows)]
    text = (
        "Gap of the IIC over-clustering head to the supervised network, each with the drawn tiles: "
        f"{gap['building_iou']:.3f} in building IoU (matched by iou), {gap['accuracy']:.3f} in accuracy (matched by "
        "accuracy)."
    )
    return [_table(rows), Paragraph(text)]


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = {name: text for name, text in COLUMNS.items() if name in rows[0]["measures"]}  # older files hold fewer
    return Table(
        ("method", "matched by", *columns.values()),
        [(row["method"], row["objective"], *(_figure(row, name) for name in columns)) for row in rows],
    )


def _figure(row: dict[str, Any], name: str) -> str:
    mean, deviation = row["measures"][name]
    return f"{mean:.3f} ± {deviation:.3f}" if row["draws"] > 1 else f"{mean:.3f}"


def _detail_blocks(setting: dict[str, Any]) -> list[Block]:
    ground, mappings = "that is scored", "as the file has them"
    if "iou" in setting["mappings"]:
        ground, mappings = "to match on", "from all labels to match on and as the file has them"
    confusion = [
        (
            name,
            ", ".join(map(str, mapping["building_clusters"])),
            *(str(mapping["confusion"][key]) for key in _CONFUSION),
        )
        for name, mapping in setting["mappings"].items()
    ]
    clusters = [
        (
            str(each["cluster"]),
            str(each["building"]),
            str(each["background"]),
            "" if each["purity"] is None else f"{each['purity']:.3f}",
            f"{100 * each['share']:.1f} %",
            ", ".join(each["chosen_by"]),
        )
        for each in setting["clusters"]
    ]
    return [
        Heading(4, f"{setting['name']}: mappings"),
        Paragraph(f"Labelled pixels that were scored, by mappings {mappings}."),
        Table(("mapping", "building clusters", *_CONFUSION.values()), confusion),
        Heading(4, f"{setting['name']}: clusters"),
        Paragraph(f"Labelled pixels of each cluster, and its share of all pixels, on the ground {ground}."),
        Table(("cluster", "building", "background", "purity", "share", "building by"), clusters),
    ]


def _picture_blocks(number: int, name: str, examples: Sequence[Example]) -> list[Block]:
    if not examples:
        return []
    stem = re.sub(r"\W+", "_", f"{number} {name.lower()}")  # two names may differ in their punctuation alone
    return [
        Heading(4, f"{name}: pictures"),
        Paragraph(LEGEND),
        *(
            Picture(f"{stem}_{each.rank}", f"{name}, {each.rank} tile: building IoU {each.iou:.3f}", each.pixels)
            for each in examples
        ),
    ]
