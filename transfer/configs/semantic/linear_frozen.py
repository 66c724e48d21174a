# Linear classifier on the patch features of a frozen ViT, two depths side by side: what the features themselves know.
# About 50 images of 200 px learn in half a minute on two CPU cores. Learning rate for batch 8.
_base_ = ["../_base_/semantic.py"]
method = "linear head (frozen ViT)"
iterations = 60
size_px = 192
model = dict(
    backbone=dict(frozen=True),
    decode_head=dict(
        type="FCNHead",
        num_convs=0,
        concat_input=False,
        in_index=[1, 3],  # middle and last block, at stride 8
        input_transform="resize_concat",
        num_classes=None,  # the data's
        channels=None,  # the sum of the input channels
        dropout_ratio=0.0,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True),
    ),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(
        pipeline=[
            dict(type="LoadRGB"),
            dict(type="LoadAnnotations"),
            dict(type="Resize", scale=(size_px, size_px), keep_ratio=True),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackSegInputs"),
        ]
    ),
)
test_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadRGB"),
            dict(type="Resize", scale=(size_px, size_px), keep_ratio=True),
            dict(type="LoadAnnotations"),  # after Resize: scored at the image's own size
            dict(type="PackSegInputs"),
        ]
    )
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=3e-3, weight_decay=0.01))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=6),
    dict(type="CosineAnnealingLR", eta_min_ratio=0.01, by_epoch=False, begin=6, end=iterations),
]
