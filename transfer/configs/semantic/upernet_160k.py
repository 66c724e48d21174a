# UperNet, finetuned at crop 512 for 160k steps of 16 images: the ADE20K protocol for ViT-B/16.
# Values after ViT-Adapter's UperNet recipe. Deviation: a simple feature pyramid (ViTDet) stands where that recipe has
# the adapter. Needs a GPU; learning rate for batch 16. Not yet run to its end here.
_base_ = ["../_base_/semantic.py"]
method = "UperNet (finetuned, 160k)"
iterations = 160_000
crop_px = 512
loss = dict(type="CrossEntropyLoss", avg_non_ignore=True)
head = dict(
    num_classes=None,  # the data's
    norm_cfg=dict(type="BN"),
    dropout_ratio=0.1,
    align_corners=False,
)
model = dict(
    data_preprocessor=dict(size=(crop_px, crop_px), size_divisor=None),
    backbone=dict(frozen=False, deconv=True, drop_path_rate=0.3),
    decode_head=dict(
        type="UPerHead", in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3, 6), channels=512, loss_decode=loss, **head
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        loss_decode=dict(loss_weight=0.4, **loss),
        **head,
    ),
    test_cfg=dict(mode="slide", crop_size=(crop_px, crop_px), stride=(341, 341)),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    dataset=dict(
        pipeline=[
            dict(type="LoadRGB"),
            dict(type="LoadAnnotations"),
            dict(type="RandomResize", scale=(4 * crop_px, crop_px), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type="RandomCrop", crop_size=(crop_px, crop_px), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ]
    ),
)
test_dataloader = dict(
    num_workers=4,
    dataset=dict(
        pipeline=[
            dict(type="LoadRGB"),
            dict(type="Resize", scale=(4 * crop_px, crop_px), keep_ratio=True),
            dict(type="LoadAnnotations"),  # after Resize: scored at the image's own size
            dict(type="PackSegInputs"),
        ]
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(layer_decay=0.95),
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=iterations),
]
