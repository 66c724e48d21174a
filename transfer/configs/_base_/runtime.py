# What every head shares. `transfer.mm_run` fills in what only a run knows: the backbone's folder and normalisation, the
# data's files and classes, seed and work folder. Everything else stands in the recipes.
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
default_hooks = dict(
    runtime_info=dict(type="RuntimeInfoHook"),
    timer=dict(type="IterTimerHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    logger=dict(type="LoggerHook", interval=10, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=None,  # that of phases 2 and 3 instead, see transfer.mm_run
)
log_processor = dict(by_epoch=False)
log_level = "INFO"
test_cfg = dict()
