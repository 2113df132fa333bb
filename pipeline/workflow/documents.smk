# The rules of an experiment on documents, except train: see the Snakefile, whose names they use.
rule prepare:
    input:
        suffix=X.suffix,
    output:
        record=RECORD,
    log:
        f"results/data/{X.data}.log",
    benchmark:
        f"results/data/{X.data}.benchmark.tsv"
    conda:
        "../../envs/pipeline.yaml"
    resources:
        settings=X.prepare_settings,
    params:
        config=X.keys("prepare"),
    shell:
        "python -m pipeline.launch --log {log} -- -m pipeline.prepare config={params.config:q}"
        " {resources.settings} out={output.record:q}"


rule predict:
    input:
        weights=lambda wildcards: X.weights_to_predict(workflow),
        record=lambda wildcards: X.current_record(workflow),
    output:
        predictions=f"{RUN}/predict/predicted.npy",
        rows=f"{RUN}/predict/rows.npy",
        about=f"{RUN}/predict/predict.json",
    log:
        f"{RUN}/predict/log.txt",
    benchmark:
        f"{RUN}/predict/benchmark.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: X.threads("sample", workflow)
    resources:
        gpu=X.runtime.gpus.sample,
        env=f"{X.pack_env} CUDA_VISIBLE_DEVICES? CUDA_DEVICE_ORDER?",
        settings=X.settings,
    params:
        config=X.keys("predict"),
        folder=subpath(output.predictions, parent=True),
    shell:
        "python -m pipeline.launch --gpus {resources.gpu} --threads {threads} --log {log}"
        " -- -m pipeline.predict config={params.config:q} {resources.settings}"
        " weights={input.weights:q} record={input.record:q} out={params.folder:q}"


rule score:
    input:
        predictions=rules.predict.output.predictions,
        rows=rules.predict.output.rows,
        about=rules.predict.output.about,
        record=lambda wildcards: X.current_record(workflow),
    output:
        scores=f"{RUN}/metrics/scores.json",
    log:
        f"{RUN}/metrics/scores.log",
    benchmark:
        f"{RUN}/metrics/scores.benchmark.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 4
    resources:
        env=X.pack_env,
        settings=X.settings,
    params:
        config=X.keys("score"),
        folder=subpath(input.predictions, parent=True),
    shell:
        "python -m pipeline.launch --threads {threads} --log {log} -- -m pipeline.score"
        " config={params.config:q} {resources.settings} predictions={params.folder:q}"
        " record={input.record:q} out={output.scores:q}"


rule report:
    input:
        record=lambda wildcards: X.current_record(workflow),
        curve=rules.train.output.curve,
        metrics=rules.score.output.scores,
    output:
        summary=f"{RUN}/report/summary.txt",
        index=f"{RUN}/report/index.html",
        curve=report(
            f"{RUN}/report/curve.png",
            caption="../captions/curve.rst",
            category="Training",
            labels={"figure": "training curve"},
        ),
    log:
        f"{RUN}/report/log.txt",
    benchmark:
        f"{RUN}/report/benchmark.tsv"
    conda:
        "../../envs/pipeline.yaml"
    resources:
        env=X.pack_env,
        settings=X.settings,
    params:
        config=X.keys("report"),
        folder=subpath(output.summary, parent=True),
    shell:
        "python -m pipeline.launch --log {log} -- -m pipeline.report config={params.config:q}"
        " {resources.settings} curve={input.curve:q} record={input.record:q}"
        " metrics={input.metrics:q} out={params.folder:q}"
