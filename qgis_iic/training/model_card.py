"""The model's card: Markdown, made of what the model file and its siblings say of themselves and of nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgis_iic.engine.outputs import write_whole
from qgis_iic.protocol.model_metadata import ModelMetadata
from qgis_iic.training.document import Table, to_markdown
from qgis_iic.training.matching import MANUAL
from qgis_iic.training.model_file import ADAPTATION, MATCHED_BEFORE, read_siblings
from qgis_iic.training.report import figure_blocks

_CRITERIA = {"loss": "the least loss", "rank": "the least effective rank of its features"}
"""What `held_out.criterion` takes of several states, and of several seeds."""


@dataclass(frozen=True)
class Copy:
    """A file with the same model in another precision.

    Attributes:
        name: of the file.
        size: in bytes.
        precision: see `ModelMetadata`.
    """

    name: str
    size: int
    precision: dict[str, Any]


def read_copies(model: Path) -> list[Copy]:
    """Those that lie beside a model file and are of its present state; raises as `model_file.read_model` does."""
    found = read_siblings(model).items()
    return [Copy(path.name, path.stat().st_size, metadata.precision) for path, metadata in found]


def model_card(metadata: ModelMetadata, file_name: str, copies: Sequence[Copy] = ()) -> str:
    """The card of a model file of that name; sections without facts are left out."""
    sections = [_heading(metadata), _imagery(metadata), _training(metadata), _matching(metadata)]
    sections += [to_markdown(figure_blocks(metadata.metrics)), _precisions(copies), _limits(metadata)]
    sections.append(_regenerate(metadata, file_name, copies))
    return "\n\n".join(section for section in sections if section) + "\n"


def write_card(metadata: ModelMetadata, model: Path, card: Path) -> None:
    """Writes the card of the file `model`, which says `metadata` of itself or soon will.

    Raises:
        OutputNotWritable, DiskFull: see `engine.outputs.write_whole`.
        ModelNotFound, ModelInvalid: see `model_file.read_model`.
    """
    write_whole(card, model_card(metadata, model.name, read_copies(model)).encode())


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
            "Buildings in very-high-resolution imagery by Invariant Information Clustering, trained without labels"
            + (", then with a few." if "fine_tuning" in metadata.training else "."),
            "Generated from the model file; not edited by hand.",
            "",
            _table(("", ""), facts),
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
    labels = "" if "fine_tuning" in metadata.training else "No label was used in training.\n\n"
    return f"## Training imagery\n\n{labels}{_table(heading, rows)}"


def _training(metadata: ModelMetadata) -> str:
    training = metadata.training
    if not training:
        return ""
    config = training["config"]
    network, objective, optimisation = config["network"], config["objective"], config["optimisation"]
    side = optimisation["chip_size"]
    # Earlier exports do not say it, and are all of runs that were taken to their end.
    has_prototypes = objective["cluster_head"] == "k_means" and training.get("has_prototypes", True)
    chosen = "It is the last state; no other was chosen."
    if training.get("is_best", True):
        criterion = _CRITERIA[config["held_out"].get("criterion", "loss")]
        chosen = f"The model is the state with {criterion} on held-out ground; no label chose that, nor the seed."
    lines = [
        f"- {training['steps']} steps of {optimisation['chips']} pairs of {side} x {side} pixels in "
        f"{_duration(training['seconds'])}, seed {training['seed']}, Adam {optimisation['learning_rate']}. "
        f"{chosen}",
        f"- Width {network['width']} of the published network, dilations {_numbers(network['dilations'])}"
        + ("; the heads see several layers and the image's local moments" if network["multi_layer"] else "")
        + ("; k-means of the features for an over-clustering head." if has_prototypes else "."),
        f"- Displacements up to {objective['displacement']} pixels at half resolution, "
        f"{objective['displacements_per_step']} a step; lambda {objective['lambda_clusters']} (over-clustering) and "
        f"{objective['lambda_classes']} (main head); reconstruction weight {objective['reconstruction_weight']}.",
        *_last_step(training["last_step"], has_prototypes),
        "- " + ", ".join(f"{name} {number}" for name, number in metadata.versions.items()) + ".",
    ]
    for name in training:  # in the order in which it was done
        if name == ADAPTATION:
            lines.append(_adaptation(training[name]))
        elif name == "fine_tuning":
            lines.append(_fine_tuning(training[name]))
    return "\n".join(["## Training", "", *lines])


def _adaptation(record: dict[str, Any]) -> str:
    imagery = _numbers(f"`{name}`" for name in record["imagery"])
    return (
        f"- Adapted without labels to {imagery}, from the file whose graph has the SHA-256 "
        f"`{record['from_weights_sha256']}`."
    )


def _fine_tuning(record: dict[str, Any]) -> str:
    return (
        f"- Then fine-tuned with labels for {record['minutes']:g} minutes, {record['steps']} steps, from the model "
        f"whose graph has the SHA-256 `{record['from_weights_sha256']}`. The lines above are of that one."
    )


def _last_step(last: dict[str, float], has_prototypes: bool) -> list[str]:
    """A line, none where no step was done."""
    if not last:
        return []
    return [
        f"- At the last step: loss without lambda {last['clusters_loss_without_lambda']:.3f} and "
        f"{last['classes_loss_without_lambda']:.3f} (over-clustering, main head), H(z)/ln K "
        f"{last['clusters_entropy']:.3f}, H(z|z') {last['clusters_conditional_entropy']:.3f}, "
        f"{last['clusters_alive']:.0f} clusters above half their fair share"
        + (": of the head that k-means then took the place of." if has_prototypes else ".")
    ]


def _matching(metadata: ModelMetadata) -> str:
    if metadata.building_clusters is None:
        return "## Mapping\n\nThe clusters are not matched to buildings yet: `iic match`."
    matching = metadata.matching
    if matching.get("objective", MANUAL) == MANUAL:
        return f"## Mapping\n\nBuildings are the clusters {_numbers(metadata.building_clusters)}, set by hand."
    rasters = _numbers(dict.fromkeys(f"`{label['imagery']}`" for label in matching["labels"]))
    text = "## Mapping\n\n"
    if "head" in matching:
        head = matching["head"]
        text += (
            f"The building head ({head['kind']}) decides: a building is where its probability is at least one half. On "
            f"{head['pixels']} labelled pixels it reaches an IoU of {head['iou']:.3f}. The clusters are matched beside "
            "it.\n\n"
        )
    elif metadata.decision == "probability":
        text += (
            "A building is where the shares of the building clusters in the softmax add up to one half, whatever the "
            "largest cluster is.\n\n"
        )
    text += (
        f"Buildings are the clusters {_numbers(metadata.building_clusters)}: best by `{matching['objective']}` on "
        f"{matching['building_pixels']} building and {matching['background_pixels']} background pixels in "
        f"{len(matching['labels'])} regions of {rasters}. "
        f"On these very pixels it reaches an IoU of {matching['iou']:.3f} and an accuracy of "
        f"{matching['accuracy']:.3f}; what it reaches elsewhere is below."
    )
    if "spread" in matching:
        spread = matching["spread"]
        text += (
            f" Matched on a part of them, {spread['draws']} draws of {spread['kind']}, it reaches "
            f"{spread['iou']:.3f} ± {spread['deviation']:.3f} on the rest."
        )
    return f"{text} All of this is of the model before it was adapted." if MATCHED_BEFORE in matching else text


def _precisions(copies: Sequence[Copy]) -> str:
    if not copies:
        return ""
    rows = []
    for copy in copies:
        for place in copy.precision["places"]:
            before, after = (f"{iou:.4f}" for iou in place["iou"]) if "iou" in place else ("", "")
            agreement = f"{100 * place['agreement']:.2f} %"
            rows.append((f"`{copy.name}`", f"{copy.size / 1e6:.2f} MB", place["name"], agreement, before, after))
    text = (
        "Copies of this model for `--precision`: the share of pixels on which the building mask is that of fp32, and "
        "the building IoU of both, on ground that int8 was not calibrated on. A copy is written only where the share "
        "is at least 99.5 % and the IoU falls by no more than 0.005, in each place. For fp16 a processor rounded what "
        "a GPU would round. int8 is for processors with VNNI or the like: on older x86 ones sums of bytes may saturate "
        "in ONNX Runtime, and these figures do not hold."
    )
    heading = ("file", "size", "place", "same building mask", "IoU, fp32", "IoU, copy")
    return f"## Precisions\n\n{text}\n\n{_table(heading, rows)}"


def _limits(metadata: ModelMetadata) -> str:
    note = metadata.training.get("config", {}).get("note", "")
    again = "Match" if metadata.building_clusters is None else "Match again"
    measured = "The figures hold for the places above; nothing is claimed for others."
    return "\n".join(
        [
            "## Limits",
            "",
            *([f"- {note}"] if note else []),
            f"- {measured if metadata.metrics else 'No figure says how good it is: it has not been measured.'} {again} "
            "with some labels of your own place: `iic match`.",
            "- A cluster is a look of the ground, not a kind of object: roofs and paved or bare ground of the same "
            "colour and texture share clusters.",
            f"- The network sees {2 * metadata.halo * metadata.gsd:.0f} m of ground around a pixel, less than a large "
            "building; it knows no outlines and does not separate buildings that touch.",
        ]
    )


def _regenerate(metadata: ModelMetadata, file_name: str, copies: Sequence[Copy]) -> str:
    """The commands; DATA is where the imagery and the labels lie."""
    stem = file_name.removesuffix(".onnx")
    model, card = f"models/{file_name}", f"--card models/{stem}.md"
    export = f"iic export runs/{stem} --output {model}"
    protocol = metadata.metrics.get("protocol", "places.toml")  # older files do not say
    places = f"--places models/{protocol or 'places.toml'}"
    matched, scored = places, places
    if not protocol or not metadata.metrics:
        matched, scored = _labels(metadata.matching) or places, "--imagery SCENE --labels LABELS"
    trained = metadata.training.get("precision", "32-true")
    precision = "" if trained == "32-true" else f" --precision {trained}"
    commands = [f"iic train models/{metadata.name}.toml --output runs/{stem}{precision}"]
    commands.append(export if metadata.metrics else f"{export} {card}")
    done = [name for name in metadata.training if name in (ADAPTATION, "fine_tuning")]
    if ADAPTATION in done:
        adaptation = metadata.training[ADAPTATION]
        imagery = " ".join(f"--imagery DATA/{name}" for name in adaptation["imagery"])
        bands = f" --bands {','.join(map(str, adaptation['bands']))}" if adaptation["bands"] else ""
        commands = [f"iic adapt ORIGINAL.onnx {imagery}{bands} --output {model}"]
    if done and done[-1] == "fine_tuning":
        tuned = metadata.training["fine_tuning"]
        commands.append(
            f"iic finetune {model} {_labels(tuned)} --minutes {tuned['minutes']:g} --output {model} --overwrite"
        )
    elif metadata.building_clusters is not None and MATCHED_BEFORE not in metadata.matching:
        commands.append(f"iic match {model} {_how_matched(metadata, matched)} --output {model}")
    if metadata.metrics:
        steps = metadata.metrics.get("supervised_steps")
        supervised = f" --supervised {steps}" if steps else ""
        commands.append(f"iic evaluate {model} {scored}{supervised} --record {card}")
    for copy in copies:
        kind, grounds = copy.precision["kind"], copy.precision["places"]
        where = f"{places} " if any("iou" in ground for ground in grounds) else ""
        where += " ".join(f"--imagery DATA/{ground['name']}" for ground in grounds if "iou" not in ground)
        commands.append(f"iic quantise {model} --precision {kind} {where.strip()} {card}")
    return "\n".join(["## How to make it again", "", "```sh", *commands, "```"])


def _how_matched(metadata: ModelMetadata, labels: str) -> str:
    objective = metadata.matching.get("objective", "iou")
    if objective == MANUAL:
        return f"--building {','.join(map(str, metadata.building_clusters or ()))}"
    probe = metadata.matching.get("head", {}).get("kind") == "probe"
    return f"{labels} --objective {objective}{' --head probe' if probe else ''}"


def _labels(made_with: dict[str, Any]) -> str:
    """The options for labels of one raster, of which all blocks tell the same; none for those of a protocol."""
    options = {
        " ".join(f"--{name} DATA/{record[name]}" for name in ("imagery", "labels", "area") if name in record)
        + (f" --bands {','.join(map(str, record['bands']))}" if "bands" in record else "")
        for record in made_with.get("labels", ())
    }
    return options.pop() if len(options) == 1 else ""


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _numbers(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return to_markdown([Table(heading, rows)])
