# `make demo` and `make test` set up all they need, once; see README.md.

PYTHON ?= /usr/bin/python3
SCENE ?=
PROFILE ?= $(HOME)/.local/share/QGIS/QGIS3/profiles/default

engine := .venv/engine/bin
qgis := .venv/qgis/bin
package := dist/qgis_iic.zip
package_sources := $(shell find qgis_iic resources models -type f -not -name '*.pyc') metadata.txt LICENSE tools/package_plugin.py

# QGS105 wants no parameter named iface, which classFactory has by contract; QGS201 and QGS202 are experimental and take
# QSpinBox.setValue or addParameter for calls on layers.
qgis_rules_off := QGS105,QGS201,QGS202

.PHONY: demo test bench lint package deploy setup system clean
.DELETE_ON_ERROR:

demo: setup $(package)
	$(engine)/python demo/run.py $(if $(SCENE),"$(SCENE)")

test: setup $(package)
	$(engine)/python -m pytest --ignore=tests/plugin --ignore=tests/integration
	QT_QPA_PLATFORM=offscreen $(qgis)/python -m pytest tests/plugin tests/integration

bench: setup
	$(engine)/python benchmarks/inference.py
	$(engine)/python benchmarks/training.py

lint: .venv/engine/.installed
	$(engine)/ruff check .
	$(engine)/ruff format --check .
	$(engine)/mypy
	$(engine)/flake8 --select QGS --extend-ignore $(qgis_rules_off) qgis_iic/plugin
	$(engine)/bandit --quiet --recursive qgis_iic

package: $(package)

$(package): $(package_sources)
	$(PYTHON) tools/package_plugin.py

deploy: $(package)
	mkdir -p "$(PROFILE)/python/plugins"
	rm -rf "$(PROFILE)/python/plugins/qgis_iic"
	$(PYTHON) -m zipfile -e $(package) "$(PROFILE)/python/plugins"

setup: .venv/engine/.installed .venv/qgis/.installed

system:
	@sh tools/install_qgis.sh

# The engine's interpreter is apart from QGIS's own: their geo libraries break each other.
.venv/engine/.installed: pyproject.toml constraints/engine.txt | system
	$(PYTHON) -m venv --clear .venv/engine
	$(engine)/pip install --quiet --constraint constraints/engine.txt --editable '.[engine,train,test,bench,lint]'
	touch $@

.venv/qgis/.installed: constraints/qgis.txt | system
	$(PYTHON) -m venv --clear --system-site-packages .venv/qgis
	$(qgis)/pip install --quiet --requirement constraints/qgis.txt
	touch $@

clean:
	rm -rf .venv build dist demo/out benchmarks/out *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
