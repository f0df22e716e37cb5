"""The record of benchmarks/inference.py as Markdown."""

from __future__ import annotations

from typing import Any


def table(record: dict[str, Any]) -> str:
    facts, peaks = record["machine"], record["peaks"]
    lines = [
        "# Benchmarks",
        "",
        f"Made by `{' '.join(['benchmarks/inference.py', *record['options']])}`, which says how each row is measured; "
        "`make bench` prints the same.",
        "",
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB{_gpu(facts)}; {facts['system']}; "
        f"Python {facts['python']}, ONNX Runtime {facts['onnxruntime']}; usable: {', '.join(facts['usable'])}. "
        "Large matrix product: "
        + ", ".join(
            f"{peak['provider']} {peak['precision']} {peak['operations_per_second'] / 1e9:.0f} G operations/s"
            for peak in peaks
        )
        + f". From start to the first tile, the model's loading aside: {record['start_seconds']:.2f} s.",
        "",
        *_extractions(record),
        "",
        *_beside_plain_loop(record),
        "",
        *_growth(record["growth"]),
    ]
    return "\n".join(lines) + "\n"


def _gpu(facts: dict[str, Any]) -> str:
    return f"; {facts['gpu']}" if facts["gpu"] else ""


def _extractions(record: dict[str, Any]) -> list[str]:
    peaks = {(each["provider"], each["precision"]): each["operations_per_second"] for each in record["peaks"]}
    lines = [
        "## Raster to GeoPackage",
        "",
        "Full width: `models/iic_rgb.onnx`; quarter width: `models/iic_rgb_small.onnx`. Session alone: one tile, on a "
        "GPU a batch of them, again and again, times the number of tiles. Stages work at the same time, and beside a "
        "GPU some of them on several threads or in several processes, whose seconds add up, as does the memory of the "
        "processes. Both shares are of the time without loading the model.",
        "",
        "| network | on | Mpx | tiles | seen twice | s | Mpx/s | load | read | network | vectorize | write "
        "| share in the session | / session alone | G op/s | of the peak | MB |",
        "|" + "---|" * 17,
    ]
    for row in record["extractions"]:
        seconds, rate = row["seconds"], row["operations_per_second"]
        working = seconds["total"] - seconds["model"]
        lines.append(
            f"| {row['network']} | {row['provider']} {row['precision']} | {row['pixels'] / 1e6:.1f} "
            f"| {row['tiles']} of {row['tile'][0]} x {row['tile'][1]} | {row['halo_share']:.1%} "
            f"| {_stages(row, 'model')} | {seconds['network'] / working:.1%} "
            f"| {working / row['session_alone']:.2f} | {rate / 1e9:.0f} "
            f"| {rate / peaks[row['provider'], row['precision']]:.0%} | {row['peak_mb']:.0f} |"
        )
    return lines


def _beside_plain_loop(record: dict[str, Any]) -> list[str]:
    lines = [
        "## Beside a plain loop",
        "",
        "One tile of 650 pixels at a time, 15 % overlap, fp32, everything in memory, outlines at the end by OpenCV.",
        "",
        "| network | on | Mpx | plain loop, s | MB | this, s | times as fast |",
        "|" + "---|" * 7,
    ]
    for row in record["naive"]:
        for ours in record["extractions"]:
            if all(ours[fact] == row[fact] for fact in ("network", "pixels", "provider")):
                total = ours["seconds"]["total"]
                lines.append(
                    f"| {row['network']} | {row['provider']} | {row['pixels'] / 1e6:.1f} | {row['seconds']:.1f} "
                    f"| {row['peak_mb']:.0f} "
                    f"| {total:.1f} ({ours['precision']}) | {row['seconds'] / total:.2f} |"
                )
    return lines


def _growth(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Growth",
        "",
        "A virtual raster that repeats the scene, in pixels of 0.3 m. In rows of the stub a graph that costs next to "
        "nothing stands in for the network.",
        "",
        "| network | on | pixels | tiles | s | Mpx/s | read | network | vectorize | write | buildings | MB |",
        "|" + "---|" * 12,
    ]
    lines += [
        f"| {row['network']} | {row['provider']} {row['precision']} | {row['pixels']:.1e} | {row['tiles']} "
        f"| {_stages(row)} | {row['buildings']} "
        f"| {row['peak_mb']:.0f} |"
        for row in rows
    ]
    return lines


def _stages(row: dict[str, Any], *before: str) -> str:
    seconds = row["seconds"]
    stages = " | ".join(f"{seconds[stage]:.1f}" for stage in (*before, "read", "network", "vectorize", "write"))
    return f"{seconds['total']:.1f} | {row['pixels'] / 1e6 / seconds['total']:.2f} | {stages}"
