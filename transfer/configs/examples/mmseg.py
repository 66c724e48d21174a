# transfer/configs/examples/mmseg.py
import json
import pathlib

_base_ = (
    __import__("mmseg").__path__[0]  # "mmseg::swin/..." where the package is installed under the name mmsegmentation
    + "/.mim/configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"
)
custom_imports = dict(imports=["sohes.mm"])
folder = "runs/sohes_full-demo/export/backbone"
vit = json.loads(pathlib.Path(folder, "config.json").read_text())
width, pixels = vit["num_features"], vit["pretrained_cfg"]
model = dict(
    data_preprocessor=dict(mean=[255 * x for x in pixels["mean"]], std=[255 * x for x in pixels["std"]]),
    backbone=dict(_delete_=True, type="TimmViT", folder=folder),  # it is finetuned; frozen=True keeps it as it is
    decode_head=dict(in_channels=[width] * 4),
    auxiliary_head=dict(in_channels=width),
)
