import json

import pytest

from inheritune.errors import SurgeryError
from inheritune.surgery.certificate import Certificate, TensorOrigin

WHOLE = Certificate("prefix", "owner/model", (0, 1), 0.0, {"a": TensorOrigin("b", "slice", "00ff")}, ("a note",))


def test_saved_certificate_is_loaded_again(tmp_path):
    WHOLE.save(tmp_path)
    assert Certificate.load(tmp_path) == WHOLE


def test_json_has_the_fixed_names():
    assert WHOLE.to_json() == {
        "format": 1,
        "kind": "prefix",
        "reference": "owner/model",
        "layers": [0, 1],
        "max_abs_difference": 0.0,
        "tensors": {"a": {"from": "b", "op": "slice", "sha256": "00ff"}},
        "notes": ["a note"],
    }


def test_folder_without_certificate_is_no_child(tmp_path):
    with pytest.raises(SurgeryError, match=r"no certificate\.json"):
        Certificate.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[]", "3", json.dumps({**WHOLE.to_json(), "format": 99})])
def test_damaged_certificate_is_refused(content, tmp_path):
    (tmp_path / "certificate.json").write_text(content)
    with pytest.raises(SurgeryError, match="is not a certificate"):
        Certificate.load(tmp_path)
