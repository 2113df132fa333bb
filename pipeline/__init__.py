"""A pipeline that trains, samples and scores image flow-matching models.

The steps, one per rule of the Snakefile: downsample -> train -> sample -> evaluate -> report, with
fetch, reference, coupling, average, select, solver and milestones beside them; of documents
prepare -> train -> predict -> score. Commands for people: launch, plan, status, stop, export,
import_weights.
Each is a module here; what they are made of lies below, each package knowing only those above it:

base        files, locks, processes, messages: knows nothing of learning
config      keys and their ranges, how they are laid over each other, names on disk
compute     ranks, devices, random numbers by position        drawing     image tiles and charts
data        a pack -> batches                                 networks    families of networks
launching   launchers, GPUs and their leases, Slurm           interop     other projects' files
images      an image set -> a pack                            reporting   records, tables, pages
flow        paths, their times, noise and masks: the workloads on images
concept     documents as sentence vectors: their network and loss, its predictions and scores
training    any workload -> files of weights: steps, ranks, checkpoints, averages
scoring     features, distances, references                   sampling    weights -> images
workflow    rules, and what they ask                          trials      cheap scores of choices
bench       measurements

One training step, in reading order: train -> training/loop -> training/trainer -> flow/workload ->
data/reader, flow/coupling, flow/probability_path -> networks/unet.
"""
