"""Get masks from an exported file as a user's own script would, with only onnxruntime, NumPy and Pillow.

python onnx_consumer.py MODEL.onnx IMAGE OUT_FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

model, image_path, out = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}

image = np.array(Image.open(image_path).convert("RGB"))
batch = image.transpose(2, 0, 1)[None]
names = [output.name for output in session.get_outputs()]
results = dict(zip(names, session.run(names, {"image": batch}), strict=True))

Path(out).mkdir(parents=True, exist_ok=True)
for level in metadata["levels"]:
    ids = results[level["ids"]][0]
    mask = Image.fromarray(ids.astype(np.uint8))
    mask.putpalette([value for name in level["classes"] for value in metadata["colors"][name]])
    mask.save(Path(out) / f"{Path(image_path).stem}.{level['name']}.png")
    for number, name in enumerate(level["classes"]):
        print(f"{level['name']}\t{name}\t{np.mean(ids == number):.4f}")
