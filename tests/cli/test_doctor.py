"""`inheritune doctor` as a user meets it."""

import json

import pytest

from inheritune import cli


def run(*words):
    """Exit code of one command."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code


@pytest.fixture
def wrong(save_reference, tmp_path):
    """Four layers in the files, and a config that says six."""
    folder = save_reference("llama", tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    return folder


def test_right_folder_is_exit_code_0_and_a_wrong_one_3_with_what_to_type(save_reference, wrong, tmp_path, capsys):
    assert run("doctor", save_reference("llama", tmp_path / "right")) == 0
    assert "sound: the folder is what its config says" in capsys.readouterr().out
    assert run("doctor", wrong) == 3
    shown = capsys.readouterr().out
    assert "says 6 layers, and the files hold 4" in shown
    assert f"inheritune doctor {wrong} --repair OUT" in shown
    assert "not sound: 1 fault" in shown


def test_repair_ends_with_a_sound_folder_and_exit_code_0(wrong, tmp_path, capsys):
    assert run("doctor", wrong, "--repair", tmp_path / "mended") == 0
    assert "6 before, 4 now" in capsys.readouterr().out
    assert run("doctor", tmp_path / "mended") == 0


def test_repair_that_is_refused_is_one_line_and_exit_code_3(wrong, tmp_path, capsys):
    (wrong / "model.safetensors").write_bytes(b"damaged")
    assert run("doctor", wrong, "--repair", tmp_path / "mended") == 3
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and "not repaired" in shown.err and "Traceback" not in shown.err
    assert not (tmp_path / "mended").exists()


def test_json_is_the_diagnosis_and_nothing_else(wrong, capsys):
    assert run("doctor", wrong, "--json") == 3
    value = json.loads(capsys.readouterr().out)
    assert value["is_sound"] is False and value["stated_depth"] == 6 and value["held_depth"] == 4
    (fault,) = [each for each in value["findings"] if each["severity"] == "fault"]
    assert fault["kind"] == "depth" and fault["is_mendable"] is True


def test_name_of_a_file_cannot_steer_the_terminal(wrong, capsys):
    (wrong / "\x1b[2J.py").write_text("")
    run("doctor", wrong)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "?[2J.py" in shown


def test_what_is_no_folder_is_one_line_and_exit_code_3(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("doctor", tmp_path / "file") == 3
    assert capsys.readouterr().err.startswith("error: ")


def test_repair_of_a_sound_folder_makes_no_copy_and_is_no_fault(save_reference, tmp_path, capsys):
    folder = save_reference("llama", tmp_path / "right")
    capsys.readouterr()
    assert run("doctor", folder, "--repair", tmp_path / "out") == 0
    assert "nothing to mend" in capsys.readouterr().err and not (tmp_path / "out").exists()
