# Mask R-CNN, finetuned for 12 epochs of COCO (90k steps of 16 images).
# Values after ViT-Adapter's Mask R-CNN recipe. Deviations: a simple feature pyramid (ViTDet) stands where that recipe
# has the adapter, and attention is global, not windowed. Needs a GPU; learning rate for batch 16. Not yet run to
# its end here.
_base_ = ["../_base_/instance.py"]
method = "Mask R-CNN (finetuned, 1x)"
iterations = 90_000
model = dict(backbone=dict(frozen=False, deconv=True))
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    dataset=dict(
        filter_cfg=dict(min_size=32),
        pipeline=[
            dict(type="LoadRGB"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="Resize", scale=(1333, 800), keep_ratio=True),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ],
    ),
)
test_dataloader = dict(
    num_workers=4,
    dataset=dict(
        pipeline=[
            dict(type="LoadRGB"),
            dict(type="Resize", scale=(1333, 800), keep_ratio=True),
            dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
        ]
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(layer_decay=1.0),
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", gamma=0.1, by_epoch=False, begin=0, end=iterations, milestones=[60_000, 82_500]),
]
