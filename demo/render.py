"""Draws imagery with building outlines over it, by QGIS and without a screen; run by QGIS's own Python.

    /usr/bin/python3 demo/render.py SCENE BUILDINGS PICTURE --title TEXT [--subtitle TEXT] [--labelled-area AREA]

A scene too large for its outlines to be seen is drawn twice: whole, and the part of it with the most buildings.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TypeVar

from qgis.core import (
    QgsApplication,
    QgsFillSymbol,
    QgsMapLayer,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsRasterLayer,
    QgsRectangle,
    QgsSingleSymbolRenderer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QPointF, QRect, QRectF, QSize, Qt
from qgis.PyQt.QtGui import QColor, QFont, QFontMetrics, QImage, QPainter, QPen

Layer = TypeVar("Layer", bound=QgsMapLayer)

WIDTH, MARGIN = 1800, 16
LARGEST_HEIGHT = 1500
BACKGROUND, INK, FAINT = QColor(250, 250, 248), QColor(30, 30, 30), QColor(90, 90, 90)
OUTLINE, LABELLED = QColor(255, 220, 0), QColor(255, 255, 255)
SMALLEST_SCALE = 0.5
"""Pixels of the picture for one of the scene, below which outlines of houses run into each other."""
DETAIL = 1000
"""Side of the part that is drawn large, in pixels of the scene."""


def main() -> int:
    arguments = _arguments()
    application = QgsApplication([], False)
    application.initQgis()
    try:
        picture = draw(arguments)
        if not picture.save(str(arguments.picture)):
            raise OSError(f"{arguments.picture} can't be written.")
    except OSError as error:
        print(f"render: {error}", file=sys.stderr)
        return 1
    finally:
        application.exitQgis()
    return 0


def draw(arguments: argparse.Namespace) -> QImage:
    """The picture: title, maps side by side, legend.

    Raises:
        OSError: QGIS can't open one of the layers.
    """
    scene = _opened(QgsRasterLayer(str(arguments.scene), "scene"))
    buildings = outlined(_opened(QgsVectorLayer(str(arguments.buildings), "buildings")), OUTLINE, "solid", 0.3)
    layers: list[QgsMapLayer] = [buildings, scene]
    legend = [("building found", OUTLINE, Qt.PenStyle.SolidLine)]
    if arguments.labelled_area:
        area = _opened(QgsVectorLayer(str(arguments.labelled_area), "labelled"))
        layers.insert(0, outlined(area, LABELLED, "dash", 0.7))
        legend.append(("labelled corner, not scored", LABELLED, Qt.PenStyle.DashLine))

    header = 92 if arguments.subtitle else 62
    if fitted(scene.extent(), WIDTH - 2 * MARGIN).width() >= SMALLEST_SCALE * scene.width():
        maps = [map_image(layers, scene, scene.extent(), WIDTH - 2 * MARGIN)]
    else:
        detail = densest_part(buildings, scene)
        half = (WIDTH - 3 * MARGIN) // 2
        maps = [map_image(layers, scene, detail, half)]
        outlined(buildings, OUTLINE, "solid", 0.1)
        maps.insert(0, map_image(layers, scene, scene.extent(), half))
        mark(maps[0], scene.extent(), detail)
    picture = QImage(WIDTH, header + max(map_.height() for map_ in maps) + MARGIN, QImage.Format.Format_RGB32)
    picture.fill(BACKGROUND)
    painter = QPainter(picture)
    left = MARGIN
    for map_ in maps:
        painter.drawImage(left, header, map_)
        left += map_.width() + MARGIN
    write(painter, arguments.title, arguments.subtitle)
    write_legend(painter, legend)
    painter.end()
    return picture


def outlined(layer: QgsVectorLayer, colour: QColor, line: str, width: float) -> QgsVectorLayer:
    """The polygon layer, drawn as outlines of a width in millimetres."""
    properties = {"style": "no", "outline_color": colour.name(), "outline_style": line, "outline_width": str(width)}
    layer.setRenderer(QgsSingleSymbolRenderer(QgsFillSymbol.createSimple(properties)))
    return layer


def fitted(extent: QgsRectangle, width: int) -> QSize:
    """The largest size of the extent's proportions that fits into the width and the largest height."""
    height = width * extent.height() / extent.width()
    shrink = min(1.0, LARGEST_HEIGHT / height)
    return QSize(max(1, round(width * shrink)), max(1, round(height * shrink)))


def map_image(layers: list[QgsMapLayer], scene: QgsRasterLayer, extent: QgsRectangle, width: int) -> QImage:
    """The layers, the first on top, in the CRS of the scene."""
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(scene.crs())
    settings.setExtent(extent)
    settings.setOutputSize(fitted(extent, width))
    settings.setBackgroundColor(QColor(60, 60, 60))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    return job.renderedImage()


def densest_part(buildings: QgsVectorLayer, scene: QgsRasterLayer) -> QgsRectangle:
    """The cell of a grid over the scene that holds the middles of the most buildings."""
    extent = scene.extent()
    columns, rows = max(1, scene.width() // DETAIL), max(1, scene.height() // DETAIL)
    width, height = extent.width() / columns, extent.height() / rows
    counts = dict.fromkeys(((row, column) for row in range(rows) for column in range(columns)), 0)
    for building in buildings.getFeatures():
        middle = building.geometry().boundingBox().center()
        row, column = int((middle.y() - extent.yMinimum()) / height), int((middle.x() - extent.xMinimum()) / width)
        counts[min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)] += 1
    row, column = max(counts, key=lambda cell: counts[cell])
    left, bottom = extent.xMinimum() + column * width, extent.yMinimum() + row * height
    return QgsRectangle(left, bottom, left + width, bottom + height)


def mark(overview: QImage, extent: QgsRectangle, part: QgsRectangle) -> None:
    """Draws on the overview where the part is."""
    scale = overview.width() / extent.width()
    left, top = (part.xMinimum() - extent.xMinimum()) * scale, (extent.yMaximum() - part.yMaximum()) * scale
    painter = QPainter(overview)
    painter.setPen(QPen(QColor(255, 255, 255), 3))
    painter.drawRect(QRectF(left, top, part.width() * scale, part.height() * scale))
    painter.end()


def write(painter: QPainter, title: str, subtitle: str) -> None:
    painter.setPen(INK)
    painter.setFont(_font(26, bold=True))
    painter.drawText(QRect(MARGIN, 14, WIDTH, 36), Qt.AlignmentFlag.AlignLeft, title)
    painter.setPen(FAINT)
    painter.setFont(_font(19))
    painter.drawText(QRect(MARGIN, 54, WIDTH, 30), Qt.AlignmentFlag.AlignLeft, subtitle)


def write_legend(painter: QPainter, entries: list[tuple[str, QColor, Qt.PenStyle]]) -> None:
    """Swatches and their meaning, at the right of the title."""
    font = _font(19)
    painter.setFont(font)
    right = WIDTH - MARGIN
    for text, colour, style in reversed(entries):
        right -= QFontMetrics(font).horizontalAdvance(text)
        painter.setPen(INK)
        painter.drawText(QPointF(right, 40), text)
        swatch = QRectF(right - 44, 22, 34, 22)
        painter.fillRect(swatch, QColor(110, 110, 100))
        painter.setPen(QPen(colour, 2, style))
        painter.drawRect(swatch.adjusted(4, 4, -4, -4))
        right -= 70


def _font(pixels: int, *, bold: bool = False) -> QFont:
    font = QFont("DejaVu Sans")
    font.setPixelSize(pixels)
    font.setBold(bold)
    return font


def _opened(layer: Layer) -> Layer:
    if not layer.isValid():
        raise OSError(f"QGIS can't open {layer.source()}.")
    return layer


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draws imagery with building outlines over it.")
    for name in ("scene", "buildings", "picture"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--title", required=True)
    parser.add_argument("--subtitle", default="")
    parser.add_argument("--labelled-area", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
