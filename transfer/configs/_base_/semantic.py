# MMSegmentation, data-set mIoU. Leaf recipes set the head, the crop and the schedule.
_base_ = ["runtime.py"]
default_scope = "mmseg"
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        bgr_to_rgb=False,  # LoadRGB reads RGB
        pad_val=0,
        seg_pad_val=255,
        size_divisor=32,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(type="TimmViT"),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
train_dataloader = dict(
    sampler=dict(type="ResumableSampler"),
    dataset=dict(type="LabelMaps"),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="LabelMaps", test_mode=True),
)
test_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
