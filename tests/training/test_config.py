from __future__ import annotations

from pathlib import Path

import pytest

from qgis_iic.protocol.errors import JobInvalid, SourceNotFound
from qgis_iic.training.config import ImagerySource, TrainingConfig, load_config
from tests.training.scenes import CONFIG, write_config


def test_a_file_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    assert config.data == str(tmp_path)
    assert config.bands == ("red", "green", "blue")
    assert config.network.clusters == 6
    assert config.imagery[0].bands == (1, 2, 3)
    assert load_config(tmp_path / "tiny.toml", data=Path("/elsewhere")).data == "/elsewhere"


def test_a_record_comes_back_the_same(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    assert TrainingConfig.from_record(config.to_record()) == config


@pytest.mark.parametrize("name", ["iic_rgb", "iic_rgb_small"])
def test_the_configurations_in_the_repository_are_valid(project_folder: Path, name: str) -> None:
    config = load_config(project_folder / "models" / f"{name}.toml")
    assert config.name == name
    assert config.objective.reconstruction_weight > 0
    assert {source.licence for source in config.imagery} == {"CC BY 4.0", "CC BY-SA 4.0"}


@pytest.mark.parametrize(
    ("line", "replacement", "problem"),
    [
        ("clusters = 6", "clusters = 256", "clusters must be 2 to 255"),
        ("clusters = 6", 'clusters = "six"', "wrong type"),
        ("clusters = 6", "clusters = true", "wrong type"),
        ("clusters = 6", "sobel = true", "unknown entries: network.sobel"),
        ("width = 0.0625", "width = 0", "network.width"),
        ("width = 0.0625", "dilations = [1, 2]", "dilations must be 6"),
        ("width = 0.0625", "dilations = [1, 1, 90, 90, 90, 90]", "less than a tile of 650"),
        ("seeds = [3]", "seeds = [4294967296]", "below 2"),
        ('path = "scene.tif"', 'path = ""', "must not be empty"),
        ('path = "scene.tif"', 'path = "**x"', "has \\*\\* in a name"),
        ("chip_size = 32", "chip_size = 30", "multiple of 4"),
        ("displacement = 2", "displacement = 8", "quarter of the chip"),
        ("bands = [1, 2, 3]", "bands = [1, 2]", "must name 3 bands"),
        ("bands = [1, 2, 3]", "", "lacks imagery.bands"),
        ('data = "."', "", "folder `data`"),
        ("seeds = [3]", "seeds = [3]\ngsd = 1.0", "gsd must lie"),
        ("seeds = [3]", "seeds = []", "at least one"),
        ("seeds = [3]", "seeds = [3, 3]", "none twice"),
        ("patience = 40", "patience = 0", "held_out.patience"),
        ("share = 0.1", "share = 0.5", "held_out.share"),
        ("[[imagery]]", "[imagery]", r"\[\[imagery\]\]"),
        ("seeds = [3]", "seeds =", "read as a TOML file"),
    ],
)
def test_broken_rules_are_named(tmp_path: Path, line: str, replacement: str, problem: str) -> None:
    assert line in CONFIG
    path = tmp_path / "broken.toml"
    path.write_text(CONFIG.replace(line, replacement), encoding="utf-8")
    with pytest.raises(JobInvalid, match=problem):
        load_config(path)


def test_seeds_are_chosen_by_held_out_ground(tmp_path: Path) -> None:
    with pytest.raises(JobInvalid, match=r"several seeds need held_out\.share"):
        load_config(write_config(tmp_path, seeds="[3, 4]", share="0"))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="no training configuration"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(JobInvalid, match="can't be read"):
        load_config(tmp_path)
    config = load_config(write_config(tmp_path))
    with pytest.raises(SourceNotFound, match=r"no imagery scene\.tif"):
        config.imagery[0].files(tmp_path)


def test_brackets_are_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "ort[1].tif").touch()
    source = ImagerySource("ort[1]*", (1, 2, 3))
    assert source.files(tmp_path) == [str(tmp_path / "ort[1].tif")]
