"""Every number of the main job against its float64 definition, on real activations.

With ANISO_TEXT set to a UTF-8 file of texts, on those instead of the sample sentences.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from IsoScore.IsoScore import IsoScore

import aniso
from aniso import reference
from aniso.models import read_texts, run_texts


@pytest.fixture(scope="module")
def dump(minilm, demo_texts, tmp_path_factory):
    given = os.environ.get("ANISO_TEXT")
    folder = tmp_path_factory.mktemp("dump")
    with aniso.capture(minilm.model, save=folder, gram=False):
        run_texts(minilm, read_texts(Path(given)) if given else demo_texts)
    return aniso.open_dump(folder)


@pytest.fixture(scope="module")
def report(dump):
    return aniso.analyze(dump, progress=False)


@pytest.mark.parametrize("layer", range(7))
def test_every_metric_equals_the_float64_reference(dump, report, layer):
    name = dump.layers[layer]
    rows = torch.cat([block.rows for block in dump[name].blocks()])
    assert rows.dtype == torch.float32 and len(rows) > 5000
    found = report.layers[name]
    assert found.counts == {
        "rows": len(rows),
        "zero_rows": 0,
        "nonfinite_rows": 0,
        "masked_rows": 0,
    }
    expected = reference.layer_metrics(rows)
    assert set(found.metrics) == set(expected)
    for key, value in expected.items():
        tolerance = 1e-6 if key in ("alpha_req", "sv_skewness") else 1e-8
        assert found.metrics[key] == pytest.approx(value, rel=tolerance), key
    score = float(IsoScore(rows.double().numpy()))
    assert found.metrics["isoscore"] == pytest.approx(score, rel=1e-6)
    sigma = reference.singular_values(rows).numpy()
    above = sigma > 30 * found.resolution_floor
    np.testing.assert_allclose(found.singular_values[above], sigma[above], rtol=1e-7)
