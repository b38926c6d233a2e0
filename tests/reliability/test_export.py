"""What a run leaves is a plain Hugging Face folder (R24)."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from inheritune.surgery.folder import load_model

CLEAN = """
import json, sys
sys.modules["inheritune"] = None  # an import of it fails
import numpy, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(int(sys.argv[1]))
told = {}
for folder in sys.argv[2:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the layer keeps the first deep loss", return_tensors="pt").input_ids
    with torch.no_grad():
        numpy.save(folder + "-logits.npy", model(input_ids=ids).logits.numpy())
    written = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    told[folder] = {
        "ids": ids.tolist(),
        "new_tokens": written.shape[1] - ids.shape[1],
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "code": type(model).__module__.split(".")[0],
    }
print(json.dumps(told))
"""


@pytest.mark.reliability("R24")
def test_a_child_loads_with_plain_transformers_and_gives_the_same_logits(search, whole_search, finish, tmp_path):
    short = ["--train.passes", "1", "--growth.max-depth", "2", "--baselines", "[]"]
    tied = {"llama": False, "gpt2": True, "qwen3": True}
    folders = {"llama": tmp_path / "llama" / "model"}
    (tmp_path / "llama").mkdir()
    folders["llama"].symlink_to(whole_search.folder / "model")
    for family in ("gpt2", "qwen3"):
        finish(search(tmp_path / family, family, *short, tie_word_embeddings=True), code=5)
        folders[family] = tmp_path / family / "model"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-I", "-c", CLEAN, str(torch.get_num_threads()), *map(str, folders.values())]
    ended = subprocess.run(words, capture_output=True, text=True, env={**environment, "CUDA_VISIBLE_DEVICES": ""})
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    for family, folder in folders.items():
        each = told[str(folder)]
        with torch.no_grad():
            own = load_model(folder)(input_ids=torch.tensor(each["ids"])).logits.numpy()
        assert np.array_equal(own, np.load(f"{folder}-logits.npy")), family
        assert each["new_tokens"] == 8 or family == "llama", family  # an end-of-text may come first
        assert (each["tied"], each["code"]) == (tied[family], "transformers"), family
