# The experiment of config.yaml, one rule per stage. On images (pipeline/workflow/images.smk):
#
#   downsample -> train -> sample -> evaluate -> report
#            \-> reference ----------/
#   extractor ----^------------^
#
# With train.coupling=semidiscrete: downsample -> coupling -> train.
# With train.ema=power and sample.ema_width: train -> average -> sample. An experiment in sample.guide:
# guide -> sample, or guide -> average -> sample; its results have a separate folder.
# With the section select: train -> select -> sample, for samplers with sample.selected=true.
# With sample.solver=learned: train -> solver -> sample.
# With evaluate.milestones: train -> milestones -> report.
#
# On documents, workload=concept (pipeline/workflow/documents.smk):
#
#   prepare -> train -> predict -> score -> report
#
# results/data/<data>.json             record of the pack (the pack itself: $IMAGENET_DIR/<source>_<res>/)
# results/extractors/<extractor>.json  record of the weights that make features of images
# results/reference/<data>-<extractor>.npz   feature statistics of the real images
# results/coupling/<data>-….npz        duals of train.coupling=semidiscrete
# results/<experiment>/<data>/         train/ milestones/ average/ select/ solver/ sample/ metrics/ report/
# results/index.html                   all experiments; each has report/index.html
# results/experiments.html             the scores of all experiments
# results/report.html                  Snakemake's own report of the last complete run
#
# `params.config` holds the keys that a stage reads: a change re-runs it. `resources` never do:
#   gpu       GPUs the job may take, capped by --resources gpu=N
#   env       environment variables it needs; `?` marks those it reads only if they are set
#   settings  places, runtime and launch keys
from snakemake.utils import min_version

from pipeline.workflow import chatter, doors, hooks, kinds

chatter.hush()
min_version("9.27")


configfile: "config.yaml"


report: "pipeline/captions/workflow.rst"


X = kinds.experiment(*doors.read_doors(workflow, "config.yaml"))
RUN, RECORD = X.run, X.record


onstart:
    hooks.start(workflow, X)


onsuccess:
    hooks.finish(workflow, f"{RUN}/report/summary.txt")


rule all:
    default_target: True
    input:
        X.outgrown,
        f"{RUN}/report/summary.txt",
        f"{RUN}/report/index.html",


rule data:
    input:
        RECORD,


rule samples:
    input:
        X.outgrown,
        X.samples,


rule scores:
    input:
        X.outgrown,
        X.metrics,


# train, and guide, guide_2, ... for the experiments that sample.guide names
for NAME, TRAINING in X.trainings.items():

    rule:
        name:
            NAME
        input:
            record=lambda wildcards: X.current_record(workflow),
            duals=TRAINING.duals,
        output:
            weights=TRAINING.weights,
            curve=f"{TRAINING.folder}/curve.jsonl",
        log:
            f"{TRAINING.folder}/log.txt",
        benchmark:
            f"{TRAINING.folder}/benchmark.tsv"
        conda:
            "envs/pipeline.yaml"
        threads: X.threads("train", workflow)
        resources:
            gpu=X.runtime.gpus.train,
            env=f"{X.pack_env} CUDA_VISIBLE_DEVICES? CUDA_DEVICE_ORDER?",
            settings=TRAINING.settings,
        params:
            config=lambda wildcards, training=TRAINING: training.keys,
            folder=subpath(output.curve, parent=True),
        shell:
            "python -m pipeline.launch --gpus {resources.gpu} --threads {threads} --log {log}"
            " -- -m pipeline.train config={params.config:q} {resources.settings}"
            " record={input.record:q} out={params.folder:q}"


include: X.rules
