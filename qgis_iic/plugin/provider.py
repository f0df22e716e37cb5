"""The Processing provider `iic`."""

from __future__ import annotations

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from qgis_iic.plugin import resource_paths
from qgis_iic.plugin.algorithms.adapt_segmenter import AdaptSegmenter
from qgis_iic.plugin.algorithms.evaluate_buildings import EvaluateBuildings
from qgis_iic.plugin.algorithms.extract_buildings import ExtractBuildings
from qgis_iic.plugin.algorithms.finetune_segmenter import FineTuneSegmenter
from qgis_iic.plugin.algorithms.match_clusters import MatchClusters
from qgis_iic.plugin.algorithms.quantise_segmenter import QuantiseSegmenter
from qgis_iic.plugin.algorithms.segment_raster import SegmentRaster
from qgis_iic.plugin.algorithms.train_segmenter import TrainSegmenter
from qgis_iic.plugin.translation import tr


class Provider(QgsProcessingProvider):
    """Makes the algorithms known to the toolbox, the model designer and `qgis_process`."""

    def id(self) -> str:
        return "iic"

    def name(self) -> str:
        return tr("Building extraction (IIC)")

    def icon(self) -> QIcon:
        return QIcon(resource_paths.icon())

    def svgIconPath(self) -> str:
        return resource_paths.icon()

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        """What classes are written to, also where Processing's own default is another format."""
        return ["tif", "tiff"]

    def loadAlgorithms(self) -> None:
        for algorithm in (
            ExtractBuildings,
            SegmentRaster,
            TrainSegmenter,
            AdaptSegmenter,
            MatchClusters,
            FineTuneSegmenter,
            EvaluateBuildings,
            QuantiseSegmenter,
        ):
            self.addAlgorithm(algorithm())
