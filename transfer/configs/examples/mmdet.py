# transfer/configs/examples/mmdet.py
import json
import pathlib

_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"
custom_imports = dict(imports=["sohes.mm"])
folder = "runs/sohes_full-demo/export/backbone"
vit = json.loads(pathlib.Path(folder, "config.json").read_text())
width, pixels = vit["num_features"], vit["pretrained_cfg"]
model = dict(
    data_preprocessor=dict(mean=[255 * x for x in pixels["mean"]], std=[255 * x for x in pixels["std"]]),
    backbone=dict(_delete_=True, type="TimmViT", folder=folder),  # it is finetuned; frozen=True keeps it as it is
    neck=dict(in_channels=[width] * 4),
)
