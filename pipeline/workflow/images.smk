# The rules of an experiment on images, except train: see the Snakefile, whose names they use.
import json
import re

REFERENCE = X.reference
SAMPLE = f"{RUN}/sample/{{sampler}}/seed{{seed}}"
SCORES = f"{RUN}/metrics/{{sampler}}-seed{{seed}}"


# needs the network, so it runs on this machine and not on a node of a cluster
localrules:
    extractor,


wildcard_constraints:
    sampler="|".join(map(re.escape, X.samplers)),
    seed=r"-?\d+",
    run="|".join(re.escape(training.run) for training in X.trainings.values()),
    width=r"[\d.]+(e-\d+)?",
    images=r"\d+",


rule downsample:
    output:
        record=RECORD,
    log:
        f"results/data/{X.data}.log",
    benchmark:
        f"results/data/{X.data}.benchmark.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: X.runtime.workers
    resources:
        env=f"{X.images_env} IMAGENET_RES?",
        settings=X.settings,
    params:
        config=X.keys("downsample"),
    shell:
        "python -m pipeline.launch --threads {threads} --log {log} -- -m pipeline.downsample"
        " config={params.config:q} {resources.settings} runtime.workers={threads}"
        " out={output.record:q}"


rule extractor:
    input:
        given=X.given_extractor,
    output:
        record=X.extractor,
    log:
        f"{X.extractor}.log",
    conda:
        "../../envs/pipeline.yaml"
    resources:
        env="TORCH_HOME?",
        settings=X.settings,
    params:
        config=X.keys("extractor"),
    shell:
        "python -m pipeline.launch --log {log} -- -m pipeline.fetch config={params.config:q}"
        " {resources.settings} out={output.record:q}"


rule reference:
    input:
        record=lambda wildcards: X.current_record(workflow),
        extractor=X.extractor,
    output:
        statistics=REFERENCE,
    log:
        f"{REFERENCE}.log",
    cache: True  # `--cache reference` shares it between checkouts; not possible with a benchmark
    conda:
        "../../envs/pipeline.yaml"
    threads: X.threads("reference", workflow)
    resources:
        gpu=X.runtime.gpus.reference,
        env=f"{X.pack_env} TORCH_HOME? CUDA_VISIBLE_DEVICES? CUDA_DEVICE_ORDER?",
        settings=X.settings,
    params:
        config=X.keys("reference"),
    shell:
        "python -m pipeline.launch --gpus {resources.gpu} --threads {threads} --log {log}"
        " -- -m pipeline.reference config={params.config:q} {resources.settings}"
        " record={input.record:q} out={output.statistics:q}"


# only if a training has train.coupling=semidiscrete
for NAME, COUPLING in X.couplings.items():

    rule:
        name:
            NAME
        input:
            record=lambda wildcards: X.current_record(workflow),
        output:
            duals=COUPLING.duals,
        log:
            f"{COUPLING.duals}.log",
        conda:
            "../../envs/pipeline.yaml"
        threads: X.threads("reference", workflow)
        resources:
            gpu=X.runtime.gpus.reference,
            env=f"{X.pack_env} CUDA_VISIBLE_DEVICES? CUDA_DEVICE_ORDER?",
            settings=COUPLING.settings,
        params:
            config=lambda wildcards, coupling=COUPLING: coupling.keys,
        shell:
            "python -m pipeline.launch --gpus {resources.gpu} --threads {threads} --log {log}"
            " -- -m pipeline.coupling config={params.config:q} {resources.settings}"
            " record={input.record:q} out={output.duals:q}"


rule average:
    input:
        weights="{run}/train/weights.safetensors",
    output:
        weights="{run}/average/ema{width}-{images}.safetensors",
    log:
        "{run}/average/ema{width}-{images}.log",
    benchmark:
        "{run}/average/ema{width}-{images}.benchmark.tsv"
    conda:
        "../../envs/pipeline.yaml"
    resources:
        settings=X.average_settings,
    shell:
        "python -m pipeline.launch --log {log} -- -m pipeline.average"
        " sample.ema_width={wildcards.width} sample.ema_images={wildcards.images}"
        " {resources.settings} weights={input.weights:q} out={output.weights:q}"


# only if the section select says what is chosen after the training
if X.selection:

    rule select:
        input:
            weights=X.selection.searched_weights,
            guide=X.selection.guide,
            record=lambda wildcards: X.current_record(workflow),
            reference=REFERENCE,
            extractor=X.extractor,
        output:
            weights=X.selection.weights,
            choice=X.selection.choice,
            surface=report(
                f"{X.selection.folder}/surface.png",
                caption="../captions/surface.rst",
                category="Scores",
                labels={"figure": "search for EMA width and guidance"},
            ),
        log:
            f"{X.selection.folder}/log.txt",
        benchmark:
            f"{X.selection.folder}/benchmark.tsv"
        conda:
            "../../envs/pipeline.yaml"
        threads: X.threads("sample", workflow)
        resources:
            gpu=X.runtime.gpus.sample,
            env="TORCH_HOME? CUDA_VISIBLE_DEVICES? CUDA_DEVICE_ORDER?",
            settings=f"{X.settings} {X.selection.settings}",
        params:
            config=X.keys("select"),
            folder=subpath(output.choice, parent=True),
        shell:
            "python -m pipeline.launch --gpus {resources.gpu} --threads {threads} --log {log}"
            " -- -m pipeline.select config={params.config:q} {resources.settings}"
            " weights={input.weights:q} record={input.record:q} reference={input.reference:q}"
            " out={params.folder:q}"


# only of samplers whose solver is fitted
rule solver:
    input:
        weights=lambda wildcards: X.sampled_weights[wildcards.sampler],
        guide=lambda wildcards: X.guides[wildcards.sampler],
        choice=lambda wildcards: X.choice(wildcards.sampler),
    output:
        solver=f"{RUN}/solver/{{sampler}}.json",
    log:
        f"{RUN}/solver/{{sampler}}.log",
    benchmark:
        f"{RUN}/solver/{{sampler}}.benchmark.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: X.threads("sample", workflow)
    resources:
        gpu=X.runtime.gpus.sample,
        env="CUDA_VISIBLE_DEVICES? CUDA_DEVICE_ORDER?",
        settings=lambda wildcards: X.solver_settings(wildcards.sampler),
    params:
        config=lambda wildcards: X.sampler_keys("solver", wildcards.sampler),
    shell:
        "python -m pipeline.launch --gpus {resources.gpu} --threads {threads} --log {log}"
        " -- -m pipeline.solver config={params.config:q} {resources.settings}"
        " weights={input.weights:q} out={output.solver:q}"


rule sample:
    input:
        weights=lambda wildcards: X.sampled_weights[wildcards.sampler],
        guide=lambda wildcards: X.guides[wildcards.sampler],
        choice=lambda wildcards: X.choice(wildcards.sampler),
        solver=lambda wildcards: X.solver(wildcards.sampler),
    output:
        images=f"{SAMPLE}/images.npy",
        labels=f"{SAMPLE}/labels.npy",
        about=f"{SAMPLE}/sample.json",
        grid=report(
            f"{SAMPLE}/grid.png",
            caption="../captions/grid.rst",
            category="Samples",
            labels={
                "sampler": "{sampler}",
                "seed": "{seed}",
                "figure": "one row per class",
            },
        ),
        strip=report(
            f"{SAMPLE}/strip.png",
            caption="../captions/strip.rst",
            category="Samples",
            labels={
                "sampler": "{sampler}",
                "seed": "{seed}",
                "figure": "from noise to image",
            },
        ),
    log:
        f"{SAMPLE}/log.txt",
    benchmark:
        f"{SAMPLE}/benchmark.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: X.threads("sample", workflow)
    resources:
        gpu=X.runtime.gpus.sample,
        env="CUDA_VISIBLE_DEVICES? CUDA_DEVICE_ORDER?",
        settings=lambda wildcards: X.sample_settings(wildcards.sampler),
    params:
        config=lambda wildcards: X.sampler_keys("sample", wildcards.sampler),
        folder=subpath(output.images, parent=True),
    shell:
        "python -m pipeline.launch --gpus {resources.gpu} --threads {threads} --log {log}"
        " -- -m pipeline.sample config={params.config:q} {resources.settings}"
        " weights={input.weights:q} seed={wildcards.seed} out={params.folder:q}"


rule evaluate:
    input:
        images=rules.sample.output.images,
        labels=rules.sample.output.labels,
        about=rules.sample.output.about,
        record=lambda wildcards: X.current_record(workflow),
        reference=REFERENCE,
        extractor=X.extractor,
    output:
        metrics=f"{SCORES}.json",
        neighbours=report(
            f"{SCORES}-neighbours.png",
            caption="../captions/neighbours.rst",
            category="Samples",
            labels={
                "sampler": "{sampler}",
                "seed": "{seed}",
                "figure": "nearest real images",
            },
        ),
    log:
        f"{SCORES}.log",
    benchmark:
        f"{SCORES}.benchmark.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: X.threads("evaluate", workflow)
    resources:
        gpu=X.runtime.gpus.evaluate,
        env=f"{X.pack_env} TORCH_HOME? CUDA_VISIBLE_DEVICES? CUDA_DEVICE_ORDER?",
        settings=X.settings,
    params:
        config=X.keys("evaluate"),
        samples=subpath(input.images, parent=True),
    shell:
        "python -m pipeline.launch --gpus {resources.gpu} --threads {threads} --log {log}"
        " -- -m pipeline.evaluate config={params.config:q} {resources.settings}"
        " samples={params.samples:q} record={input.record:q} reference={input.reference:q}"
        " out={output.metrics:q}"


rule milestones:
    input:
        weights=X.weights,
        guide=X.guides[X.first_sampler],
        record=lambda wildcards: X.current_record(workflow),
        reference=REFERENCE,
        extractor=X.extractor,
    output:
        curve=X.milestones,
        picture=report(
            f"{RUN}/milestones/curve.png",
            caption="../captions/milestones.rst",
            category="Scores",
            labels={"figure": "distance over the training"},
        ),
    log:
        f"{RUN}/milestones/log.txt",
    benchmark:
        f"{RUN}/milestones/benchmark.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: X.threads("sample", workflow)
    resources:
        gpu=X.runtime.gpus.sample,
        env="TORCH_HOME? CUDA_VISIBLE_DEVICES? CUDA_DEVICE_ORDER?",
        settings=X.milestones_settings,
    params:
        config=X.sampler_keys("milestones", X.first_sampler),
        seed=X.milestones_seed,
        train=lambda wildcards, input: input[0].rpartition("/")[0],
        folder=subpath(output.curve, parent=True),
    shell:
        "python -m pipeline.launch --gpus {resources.gpu} --threads {threads} --log {log}"
        " -- -m pipeline.milestones config={params.config:q} {resources.settings}"
        " training={params.train:q} record={input.record:q} reference={input.reference:q}"
        " seed={params.seed} out={params.folder:q}"


rule report:
    input:
        record=lambda wildcards: X.current_record(workflow),
        curve=rules.train.output.curve,
        images=X.samples,
        metrics=X.metrics,
        choice=[X.selection.choice] if X.selection else [],
        milestones=X.scored_milestones,
        duals=X.duals,
        solvers=X.solvers,
    output:
        summary=f"{RUN}/report/summary.txt",
        index=f"{RUN}/report/index.html",
        curve=report(
            f"{RUN}/report/curve.png",
            caption="../captions/curve.rst",
            category="Training",
            labels={"figure": "training curve"},
        ),
        samples=report(
            f"{RUN}/report/samples_vs_real.png",
            caption="../captions/samples.rst",
            category="Samples",
            labels={
                "sampler": "up to four",
                "seed": "first",
                "figure": "real images beside samples",
            },
        ),
        distance=report(
            f"{RUN}/report/distance.png",
            caption="../captions/distance.rst",
            category="Scores",
            labels={"figure": "between floor and ceiling"},
        ),
        nfe=report(
            f"{RUN}/report/nfe.png",
            caption="../captions/nfe.rst",
            category="Scores",
            labels={"figure": "distance over evaluations of the network"},
        ),
        table=report(
            f"{RUN}/report/table.html",
            caption="../captions/table.rst",
            category="Scores",
            labels={"figure": "table"},
        ),
    log:
        f"{RUN}/report/log.txt",
    benchmark:
        f"{RUN}/report/benchmark.tsv"
    conda:
        "../../envs/pipeline.yaml"
    resources:
        env=X.pack_env,
        settings=X.report_settings,
    params:
        config=X.keys("report"),
        samples=lambda wildcards, input: json.dumps(
            [file.rpartition("/")[0] for file in input.images]
        ),
        metrics=lambda wildcards, input: json.dumps(list(input.metrics)),
        folder=subpath(output.summary, parent=True),
    shell:
        "python -m pipeline.launch --log {log} -- -m pipeline.report config={params.config:q}"
        " {resources.settings} curve={input.curve:q} record={input.record:q}"
        " samples={params.samples:q} metrics={params.metrics:q} out={params.folder:q}"
