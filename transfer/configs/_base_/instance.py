# MMDetection, box and mask AP. The head is the config zoo's Mask R-CNN; leaf recipes set sizes and schedule.
_base_ = ["runtime.py", "mmdet::_base_/models/mask-rcnn_r50_fpn.py"]
default_scope = "mmdet"
model = dict(
    data_preprocessor=dict(bgr_to_rgb=False),  # LoadRGB reads RGB
    backbone=dict(_delete_=True, type="TimmViT"),
)
train_dataloader = dict(
    sampler=dict(type="ResumableSampler"),
    dataset=dict(type="CocoDataset", data_prefix=dict(img=""), filter_cfg=dict(filter_empty_gt=True)),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="CocoDataset", data_prefix=dict(img=""), test_mode=True),
)
test_evaluator = dict(type="CocoAP", metric=["bbox", "segm"])
