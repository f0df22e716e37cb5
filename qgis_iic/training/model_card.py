"""The model's card: Markdown, made of what the model file says of itself and of nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.evaluation import mean_over

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "building_iou": "building IoU",
    "building_f1": "F1",
    "mean_iou": "mean IoU",
}


def model_card(metadata: ModelMetadata, file_name: str) -> str:
    """The card of a model file of that name; sections without facts are left out."""
    sections = [_heading(metadata), _imagery(metadata), _training(metadata), _matching(metadata)]
    sections += [_figures(metadata.metrics), _limits(metadata), _regenerate(metadata, file_name)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _heading(metadata: ModelMetadata) -> str:
    smallest, largest = metadata.gsd_range
    facts = [
        ("bands", ", ".join(metadata.bands)),
        ("pixels", f"{metadata.dtype}; other types are brought to the same mean and deviation"),
        ("ground sampling distance", f"{metadata.gsd} m; {smallest} to {largest} m without resampling"),
        ("clusters, classes of the main head", f"{metadata.clusters}, {metadata.classes}"),
        ("tile, halo, stride", f"{metadata.tile_size}, {metadata.halo}, {metadata.stride} pixels"),
        ("SHA-256 of the graph", f"`{metadata.weights_sha256}`"),
    ]
    return "\n".join(
        [
            f"# {metadata.name}",
            "",
            "Buildings in very-high-resolution imagery by Invariant Information Clustering, trained without labels.",
            "Generated from the model file by `iic evaluate --card`; not edited by hand.",
            "",
            *_table(("", ""), facts),
        ]
    )


def _imagery(metadata: ModelMetadata) -> str:
    sources = metadata.training.get("imagery", [])
    if not sources:
        return ""
    total = sum(source["share"] for source in sources)
    rows = [
        (
            source["place"],
            f"`{source['path']}`",
            f"{100 * source['share'] / total:.0f} %",
            source["licence"],
            source["attribution"],
        )
        for source in sources
    ]
    heading = ("place", "imagery", "share of the chips", "licence", "attribution")
    return "\n".join(["## Training imagery", "", "No label was used in training.", "", *_table(heading, rows)])


def _training(metadata: ModelMetadata) -> str:
    training = metadata.training
    if not training:
        return ""
    config = training["config"]
    network, objective, optimisation = config["network"], config["objective"], config["optimisation"]
    last = training["last_step"]
    side = optimisation["chip_size"]
    lines = [
        f"- {training['steps']} steps of {optimisation['chips']} pairs of {side} x {side} pixels in "
        f"{training['seconds'] / 60:.0f} minutes, seed {training['seed']}, Adam {optimisation['learning_rate']}. "
        "The last step is the model: neither it nor the seed was chosen by labels.",
        f"- Width {network['width']} of the published network, dilations {_numbers(network['dilations'])}.",
        f"- Displacements up to {objective['displacement']} pixels at half resolution, "
        f"{objective['displacements_per_step']} a step; lambda {objective['lambda_clusters']} (over-clustering) and "
        f"{objective['lambda_classes']} (main head); reconstruction weight {objective['reconstruction_weight']}.",
        f"- At the last step: loss without lambda {last['clusters_loss_without_lambda']:.3f} and "
        f"{last['classes_loss_without_lambda']:.3f} (over-clustering, main head), H(z)/ln K "
        f"{last['clusters_entropy']:.3f}, H(z|z') {last['clusters_conditional_entropy']:.3f}, "
        f"{last['clusters_alive']:.0f} clusters above half their fair share.",
        "- " + ", ".join(f"{name} {number}" for name, number in metadata.versions.items()) + ".",
    ]
    return "\n".join(["## Training", "", *lines])


def _matching(metadata: ModelMetadata) -> str:
    if metadata.building_clusters is None:
        return "## Mapping\n\nThe clusters are not matched to buildings yet: `iic match`."
    matching = metadata.matching
    if not matching:
        return f"## Mapping\n\nBuildings are the clusters {_numbers(metadata.building_clusters)}, set by hand."
    rasters = _numbers(dict.fromkeys(f"`{label['imagery']}`" for label in matching["labels"]))
    return (
        "## Mapping\n\n"
        f"Buildings are the clusters {_numbers(metadata.building_clusters)}: best by `{matching['objective']}` on "
        f"{matching['building_pixels']} building and {matching['background_pixels']} background pixels in "
        f"{len(matching['labels'])} regions of {rasters}. "
        f"On these very pixels it reaches an IoU of {matching['iou']:.3f} and an accuracy of "
        f"{matching['accuracy']:.3f}; what it reaches elsewhere is below."
    )


def _figures(metrics: dict[str, Any]) -> str:
    settings = metrics.get("settings", [])
    if not settings:
        return ""
    draws = metrics["draws"]
    side = draws["tile_size"]
    lines = [
        "## Figures",
        "",
        f"Mean and standard deviation over {draws['count']} draws of {draws['tiles']} labelled tiles of "
        f"{side} x {side} pixels (two thirds of the tiles there are, where that is fewer), scored on ground that was "
        f"not matched on. All methods get the same tiles. {metrics['note']}".rstrip(),
    ]
    own = [setting for setting in settings if setting["kind"] == "own"]
    cross = [setting for setting in settings if setting["kind"] == "cross"]
    if len(own) > 1:
        lines += ["", "### Mean over places, matched on other ground of the same place", "", *_rows(mean_over(own))]
    if len(cross) > 1:
        lines += ["", "### Mean over places, matched on another place", "", *_rows(mean_over(cross))]
    for setting in settings:
        lines += [
            "",
            f"### {setting['name']}",
            "",
            f"{100 * setting['building_share']:.1f} % of {setting['labelled_pixels']} labelled pixels are building.",
            "",
            *_rows(setting["rows"]),
        ]
    return "\n".join(lines)


def _limits(metadata: ModelMetadata) -> str:
    return "\n".join(
        [
            "## Limits",
            "",
            "- The figures hold for the places above; nothing is claimed for others. Match again with some labels of "
            "your own place: `iic match`.",
            "- A cluster is a look of the ground, not a kind of object: roofs and paved or bare ground of the same "
            "colour and texture share clusters.",
            f"- The network sees {2 * metadata.halo * metadata.gsd:.0f} m of ground around a pixel, less than a large "
            "building; it knows no outlines and does not separate buildings that touch.",
        ]
    )


def _regenerate(metadata: ModelMetadata, file_name: str) -> str:
    stem = file_name.removesuffix(".onnx")
    objective = metadata.matching.get("objective", "iou")
    model = f"models/{file_name}"
    return "\n".join(
        [
            "## How to make it again",
            "",
            "```sh",
            f"iic train models/{metadata.name}.toml --output runs/{stem}",
            f"iic export runs/{stem} --output {model}",
            f"iic match {model} --places models/places.toml --objective {objective} --output {model}",
            f"iic evaluate {model} --places models/places.toml --record --card models/{stem}.md",
            "```",
        ]
    )


def _rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    return _table(
        ("method", "matched by", *COLUMNS.values()),
        [(row["method"], row["objective"], *(_figure(row, name) for name in COLUMNS)) for row in rows],
    )


def _figure(row: dict[str, Any], name: str) -> str:
    mean, deviation = row["measures"][name]
    return f"{mean:.3f} ± {deviation:.3f}" if row["draws"] > 1 else f"{mean:.3f}"


def _numbers(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def summary(metrics: dict[str, Any]) -> str:
    """The tables alone, for a terminal."""
    return _figures(metrics)
