import json

import pytest

from inheritune.errors import SurgeryError
from inheritune.surgery.certificate import Certificate, TensorOrigin
from inheritune.surgery.transplant import inherit

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


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "proved"), ("max_abs_difference", 0.5), ("max_abs_difference", None), ("op", "made"), ("from", [])],
)
def test_certificate_that_says_what_no_inheritance_says_is_refused(field, value, save_reference, tmp_path):
    inherit(save_reference("llama", tmp_path / "reference"), tmp_path / "child", layers=2)
    path = tmp_path / "child" / "certificate.json"
    said = json.loads(path.read_text())
    (next(iter(said["tensors"].values())) if field in ("op", "from") else said)[field] = value
    path.write_text(json.dumps(said))
    with pytest.raises(SurgeryError, match="is not a certificate"):
        Certificate.load(tmp_path / "child")
