# Mask R-CNN on a frozen ViT, its sizes cut down: about 50 images of 200 px learn in under a minute on two CPU cores.
# Learning rate for batch 4.
_base_ = ["../_base_/instance.py"]
method = "Mask R-CNN (frozen ViT)"
iterations = 80
size_px = 192
model = dict(
    backbone=dict(frozen=True),
    neck=dict(out_channels=64, norm_cfg=dict(type="GN", num_groups=8)),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=50)),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(
        pipeline=[
            dict(type="LoadRGB"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="Resize", scale=(size_px, size_px), keep_ratio=True),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ]
    ),
)
test_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadRGB"),
            dict(type="Resize", scale=(size_px, size_px), keep_ratio=True),
            dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
        ]
    )
)
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.01), clip_grad=dict(max_norm=1.0)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type="CosineAnnealingLR", eta_min_ratio=0.01, by_epoch=False, begin=10, end=iterations),
]
