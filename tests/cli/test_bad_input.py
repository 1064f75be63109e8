"""Every bad request ends with exit code 2, a message that helps, and nothing changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

M = "--model python:tiny.py:build --trust"
X = f"extract {M} --layers stem:mean --cache new"
T = "extract --layers stem:mean --images images --cache new"
F = "fit baseline_ridge --cache cache --out new --set features__layers=stem"
FT = f"{F} --set features__reduce=mean --data"
PC = (
    "fit baseline_algonauts2023 --data table:table --cache cache --out new --set features__preprocess=null "
    "--set features__model=python:tiny.py:build --set features__layers=stem --set features__reduce=mean"
)
C = "cache import embedding.npy --cache new"
CV = "cache verify --recompute 2 --cache cache"
RF = "fit baseline_algonauts2019 --cache rdmcache --out new --set features__layers=head --data"
R = f"{RF} algonauts2019:rdm --target EVC"
G = (
    "fit gaziv2019_channel_mask --data algonauts2019:rdm --target EVC --cache rdmcache --out new "
    "--set features__model=python:tiny.py:build --set features__layers=stem --set features__reduce=mean"
)
RP = "predict evc --trust --images algonauts2019:rdm --split test --out"
RS = "--trust --images algonauts2019:rdm --split test --challenge"
S = "submit --data alg --challenge algonauts2023 --out new.zip"
TU = "fit tuner.py --data algonauts2019:rdm --target EVC --out new"
TR = ("fit mulrooney2023_contrastive --data table:table --set tuner__model=timm:test_resnet "
      "--set tuner__weights=random:0 --out new")  # fmt: skip
V = "compare --data algonauts2019:rdm --cache rdmcache --draws 20"

# What an extraction that fails at an image or at its last option may leave: which images were meant, no rows
LEFT = {"stimuli.json"}

# What is wrong, the command, and words that the message must have
BAD = [
    # images
    ("broken image", f"{X} --images broken", ["broken.png", "--skip-broken"]),
    ("truncated image", f"{X} --images truncated", ["half.jpg", "truncated"]),
    ("decompression bomb", f"{X} --images bomb", ["bomb.png", "30000 × 30000", "pixels"]),
    ("duplicate ids", f"{X} --images twice", ["a.jpg", "a.png"]),
    ("empty folder", f"{X} --images empty", ["empty", "no image"]),
    ("zip member leaves", f"{X} --images evil.zip", ["../outside.png", "evil.zip"]),
    ("tar member leaves", f"{X} --images evil.tar", ["/outside.png", "evil.tar"]),
    ("missing source", f"{X} --images nowhere", ["nowhere", "folder"]),
    ("unknown kind of source", f"{X} --images notes.txt", ["notes.txt", ".zip"]),
    ("pickled array", f"{X} --images objects.npy", ["objects.npy", "pickle"]),
    ("array of vectors", f"{X} --images vectors.npy", ["vectors.npy", "float32", "uint8"]),
    ("no archive", f"{X} --images junk.zip", ["junk.zip"]),
    ("path that is not there", f"{X} --images away.csv", ["nothing.png", "away.csv"]),
    ("csv without columns", f"{X} --images names.csv", ["names.csv", "path"]),
    ("subject of a folder", f"{X} --images images --subject 1", ["--subject", "DATA", "images"]),
    # models
    ("no zoo", f"{T} --model resnet50", ["resnet50", "ZOO:NAME", "timm"]),
    ("unknown zoo", f"{T} --model keras:resnet50", ["keras:resnet50", "torchvision"]),
    ("unknown name", f"{T} --model timm:resnet5O", ["resnet5O", "featpipe models"]),
    ("unknown open_clip name", f"{T} --model open_clip:ViT-B-33/openai", ["ViT-B-33", "featpipe models"]),
    ("no weights and no network", f"{T} --model timm:resnet10t", ["random:", "--weights"]),
    ("weights of another network", f"{T} --model timm:resnet10t --weights unfit.safetensors", ["other.weight"]),
    ("missing weights file", f"{T} --model timm:resnet10t --weights no.safetensors", ["no.safetensors"]),
    ("junk weights file", f"{T} --model timm:resnet10t --weights junk.pth", ["junk.pth"]),
    ("seed that is no number", f"{T} --model timm:resnet10t --weights random:x", ["random:x", "random:"]),
    ("unknown argument", f"{T} --model timm:resnet10t --weights random:0 --model-arg paddd=1", ["paddd"]),
    ("argument without value", f"{T} --model timm:resnet10t --model-arg pad", ["pad", "K=V"]),
    ("argument of a list", f"{T} --model timm:resnet10t --model-arg a=[1]", ["--model-arg a", "[1]"]),
    ("code without trust", f"{T} --model python:tiny.py:build", ["tiny.py", "--trust"]),
    ("code without function", f"{T} --model python:tiny.py:make --trust", ["make", "tiny.py"]),
    ("code that gives no network", f"{T} --model python:tiny.py:build_text --trust", ["str", "torch.nn.Module"]),
    ("code that is not there", f"{T} --model python:no.py:build --trust", ["no.py", "FILE.py:FUNCTION"]),
    ("missing checkpoint", f"{T} --model local:no.safetensors", ["no.safetensors"]),
    ("checkpoint that names nothing", f"{T} --model local:unfit.safetensors", ["unfit.safetensors", "--weights"]),
    ("no model", T, ["--model", "--help"]),
    # layers
    ("no layers", f"extract {M} --images images --cache new", ["--layers", "--help"]),
    ("no images", f"extract {M} --layers stem --cache new", ["--images", "--help"]),
    ("unknown layer", f"extract {M} --layers stm --images images --cache new", ["'stm'", "stem"]),
    ("layer without a name", f"extract {M} --layers :mean --images images --cache new", ["':mean'", "PATTERN"]),
    ("unknown reduction", f"extract {M} --layers stem:avg --images images --cache new", ["'avg'", "grid:K"]),
    ("tokens of a map", f"extract {M} --layers stem:cls --images images --cache new", ["stem", "cls"]),
    ("tuple output", f"extract {M[:-8]}_pair --trust --layers pair --images images --cache new", ["pair", "pair/"]),
    ("layer behind missing weights",
     "extract --model torchvision:squeezenet1_0 --weights partial.safetensors --layers output --images images "
     "--cache new", ["classifier", "output", "Leave out"]),
    # numbers
    ("two means", f"{X} --images images --mean .5,.5", ["--mean", "'.5,.5'", "R,G,B"]),
    ("mean in bytes", f"{X} --images images --mean 123.7,116.3,103.5", ["--mean", "255", "0 to 1"]),
    ("std of zero", f"{X} --images images --std 0,1,1", ["std", "positive"]),
    ("ragged batch", f"{X} --images images --batch-size 12", ["12", "multiple of 8"]),
    ("batch of words", f"{X} --images images --batch-size many", ["--batch-size", "'many'", "auto"]),
    ("ragged shard", f"{X} --images images --shard-rows 3", ["3", "multiple of 8"]),
    ("claims that expire at once", f"{X} --images images --claim-expiry 60", ["--claim-expiry", "60", "at least 120"]),
    ("claims that never expire", f"{X} --images images --claim-expiry inf", ["--claim-expiry", "inf", "120"]),
    ("no workers", f"{X} --images images --workers 0", ["0", "at least one"]),
    ("workers of words", f"{X} --images images --workers two", ["--workers", "integer"]),
    ("tf32 without a GPU", f"{X} --images images --precision tf32 --device cpu", ["tf32", "fp32"]),
    ("unknown precision", f"{X} --images images --precision fp8", ["fp8", "bf16"]),
    ("stored as bfloat16", f"{X} --images images --store-dtype bfloat16", ["bfloat16", "float16"]),
    ("size of words", f"{X} --images images --image-size x", ["--image-size", "'x'", "HxW"]),
    ("unknown interpolation", f"{X} --images images --interpolation cubic", ["cubic", "bicubic"]),
    ("unknown preprocessing", f"{X} --images images --preprocess crop", ["crop", "whole"]),
    ("unknown device", f"{X} --images images --device tpu", ["tpu", "cpu"]),
    ("no dask workers", f"{X} --images images --dask 0", ["--dask '0'", "number of workers", "tcp://"]),
    ("dask workers in words", f"{X} --images images --dask x", ["--dask 'x'", "number of workers", "tcp://"]),
    ("dry run on dask workers", f"{X} --images images --dask 2 --dry-run", ["--dry-run", "--dask"]),
    ("unknown codec", f"{X} --images images --codec rar", ["rar", "zstd"]),
    ("unknown policy for NaN", f"{X} --images images --non-finite drop", ["--non-finite", "'drop'", "refuse", "keep"]),
    ("dtype of layers", "layers python:tiny.py:build --trust --store-dtype int8", ["int8", "float16"]),
    ("unknown option", f"{X} --images images --layer stem", ["--layer"]),
    # the cache
    ("unknown key", "cache show ffffffff --cache cache", ["ffffffff", "cache ls"]),
    ("ambiguous key", "cache show '' --cache cache", ["3 keys", "more digits"]),
    ("removal of an unknown key", "cache rm ffffffff --yes --cache cache", ["ffffffff"]),
    ("verification of an unknown key", "cache verify ffffffff --cache cache", ["ffffffff"]),
    ("cache that is a file", "cache ls --cache ids.csv", ["ids.csv", "folder"]),
    ("rows without images", "cache verify --recompute 2 --cache cache", ["--recompute", "--images"]),
    ("rows of other images", f"{CV} --images images --trust", ["not the images of array", "of the 40", "SHA-256"]),
    ("rows of code without trust", f"{CV} --images table:table", ["tiny.py", "--trust"]),
    ("rows of another network", f"{CV} --images table:table --model timm:test_resnet --weights random:0",
     ["timm:test_resnet", "does not have"]),
    ("no rows to compute", "cache verify --recompute 0 --cache cache", ["--recompute"]),
    ("weights without images", "cache verify --repair --weights random:0 --cache cache", ["--weights", "--images"]),
    ("images for checksums", "cache verify --images images --cache cache", ["--recompute", "--repair"]),
    ("seed below zero", "cache verify --sample 1 --seed -1 --cache cache", ["--seed"]),
    ("verification of no cache", "cache verify --cache new", ["new", "nothing was checked"]),
    ("age without a unit", "cache ls --older 7 --cache cache", ["--older", "'7'", "12h, 7d or 2w"]),
    ("age in another unit", "cache ls --newer 3months --cache cache", ["--newer", "'3months'", "7d"]),
    ("size of words", "cache ls --larger big --cache cache", ["--larger", "'big'", "10MB"]),
    ("unit of size that is none", "cache ls --smaller 10QB --cache cache", ["--smaller", "'10QB'", "GB"]),
    ("collection in no cache", "cache gc --cache new", ["new", "nothing to collect"]),
    ("collection by a bad age", "cache gc --older soon --cache cache", ["--older", "'soon'"]),
    ("export of an unknown key", "cache export ffffffff --to npy --cache cache", ["ffffffff", "cache ls"]),
    ("export of several", "cache export '' --to npy --cache cache", ["3 keys", "more digits"]),
    ("catalogue into a folder", "cache catalog --out images --cache cache", ["images", "folder", "index.html"]),
    ("catalogue without a name", "cache catalog --cache cache", ["--out"]),
    ("import of a missing file", "cache import no.npy --name n --ids ids.csv --cache new", ["no.npy", "FILE.npy"]),
    ("import of a pickle", "cache import objects.npy --name n --ids ids.csv --cache new", ["objects.npy"]),
    ("import under a bad name", f"{C} --name 'a b' --ids ids.csv", ["'a b'", "letters"]),
    ("import with too few rows", "cache import rows39.npy --name n --ids ids.csv --cache new", ["39", "40"]),
    ("import with an id twice", f"{C} --name n --ids ids_twice.csv", ["image_0", "twice"]),
    ("import without a column id", f"{C} --name n --ids names.csv", ["name", "column id"]),
    ("import without ids", f"{C} --name n --ids no.csv", ["no.csv", "column id"]),
    ("import of other images", f"{C} --name n --ids ids.csv --images images", ["image_0"]),
    ("import as int8", f"{C} --name n --ids ids.csv --store-dtype int8", ["int8", "float16"]),
    ("push to a web server", "cache push http://127.0.0.1:9/new --cache cache", ["127.0.0.1", "only be read"]),
    ("push to an unknown scheme", "cache push ftp://host/new --cache cache", ["ftp://host/new", "s3://"]),
    ("push to itself", "cache push ./cache --cache cache", ["itself"]),
    ("push of nothing", "cache push new --cache none", ["none", "no arrays"]),
    ("push of an unknown key", "cache push new ffff --cache cache", ["'ffff'", "cache ls"]),
    ("push of an ambiguous key", "cache push new '' --cache cache", ["3 keys", "more digits"]),
    ("push of an unknown model", "cache push new --model timm:no --cache cache", ["timm:no", "python:tiny.py:build"]),
    ("push of a layer misspelt", "cache push new --layers stem --layers hed --cache cache", ["'hed'", "head, stem"]),
    ("push of unknown stimuli", "cache push new --stimuli coco --cache cache", ["'coco'", "stimuli ("]),
    ("pull of no cache", "cache pull none --cache new", ["none", "no arrays"]),
    ("pull to a web server", "cache pull cache --cache http://127.0.0.1:9/new", ["127.0.0.1", "only be read"]),
    # data
    ("no kind of data", f"{FT} table", ["'table'", "table:table"]),
    ("kind of data misspelt", f"{FT} tabel:table", ["tabel:table", "takes table"]),
    ("missing data", f"{FT} table:no", ["'no'", "table:DIR"]),
    ("too few rows", f"{FT} table:table/short.toml", ["40", "39"]),
    ("unknown key of a TOML", f"{FT} table:table/typo.toml", ["'response'", "'responses'"]),
    ("rows in no order", f"{FT} table:table/unordered.toml", ["ids", "rows"]),
    ("ceilings in percent", f"{FT} table:table/percent.toml", ["47.5", "percent"]),
    ("ceilings below zero", f"{FT} table:table/negative.toml", ["from -0.2 to -0.2", "0 to 1"]),
    ("responses cut short", f"{FT} table:table/torn.toml", ["torn.npy", "700 bytes", "cut short"]),
    ("subjects to choose from", f"{FT} algonauts2023:alg", ["--subject", "1", "2"]),
    ("unknown subject", f"{FT} algonauts2023:alg --subject 7", ["7"]),
    ("unknown target", f"{FT} table:table --target lh.V9", ["lh.V9", "lh.V1v"]),
    ("unknown synthetic option", f"{FT} synthetic:images=20", ["images"]),
    # recipes
    ("no such recipe", FT.replace("baseline_ridge", "ridge") + " table:table", ["'ridge'", "baseline_ridge"]),
    ("file without a recipe", FT.replace("baseline_ridge", "norecipe.py") + " table:table", ["RECIPE"]),
    ("recipe that cannot be read", FT.replace("baseline_ridge", "syntax.py") + " table:table", ["syntax.py", "line"]),
    ("recipe whose import fails", FT.replace("baseline_ridge", "failing.py") + " table:table",
     ["failing.py", "nothing_of_that_name"]),
    ("unknown parameter", f"{FT} table:table --set ridge__alphaz=1", ["ridge__alphaz", "ridge__alphas"]),
    ("parameter without value", f"{FT} table:table --set ridge__alphas", ["KEY=VALUE"]),
    ("list that cannot be read", f"{FT} table:table --set 'features__layers=[stem]'", ["[stem]", "Quote"]),
    ("value of the wrong kind", f"{FT} table:table --set ridge__alphas=many", ["alphas", "many"]),
    ("cv of the wrong kind", f"{FT} table:table --set ridge__cv=many", ["cv", "'many'"]),
    ("number for a layer", f"{FT} table:table --set features__layers=3", ["layers", "3", "quoted"]),
    ("number for a reduction", f"{FT} table:table --set features__reduce=3", ["reduce", "3", "text"]),
    ("number for a step", f"{FT} table:table --set ridge=3", ["'ridge'", "ridge__alphas"]),
    ("search over an unknown layer", f"{FT} table:table --search 'features__layers=[[\"stem\"], [\"body\"]]'",
     ["'body'", "stem"]),
    ("penalty below zero", f"{FT} table:table --set 'ridge__alphas=[-1.0]'", ["alphas", "-1"]),
    ("word for a penalty", f"{FT} table:table --set ridge__alpha=weak", ["alpha", "a number", "'weak'"]),
    ("more components than images", f"{PC} --set pca__n_components=100",
     ["n_components=100", "min(n_samples, n_features)", "--set"]),
    ("components below zero", f"{PC} --set pca__n_components=-5", ["n_components", "-5", "--set"]),
    ("search over a number", f"{FT} table:table --search ridge__cv=3", ["ridge__cv", "list"]),
    ("search over the unknown", f"{FT} table:table --search 'ridge__k=[3]'", ["ridge__k"]),
    ("recipe and model", "extract --recipe baseline_ridge --data table:table --model timm:resnet10t", ["--set"]),
    ("recipe and weights", "extract --recipe baseline_ridge --data table:table --weights random:0", ["--weights"]),
    ("recipe and images", "extract --recipe baseline_ridge --images images", ["--images", "--data"]),
    ("data without a recipe", f"{X} --images images --data table:table", ["--data", "--recipe"]),
    ("removal without asking or leave", "cache rm ff --json --cache cache", ["ff"]),
    ("recipe that leaves the model open", f"{FT} table:table --extract", ["features__model"]),
    ("recipe and no data", "extract --recipe chimisso2023_clip_linear", ["--data"]),
    # folds
    ("one fold", f"{FT} table:table --cv 1", ["1", "2 to 40"]),
    ("more folds than images", f"{FT} table:table --cv 41", ["41", "2 to 40"]),
    ("folds of words", f"{FT} table:table --cv some", ["'some'", "splits"]),
    ("splits that are not there", f"{FT} table:table --cv splits", ["splits.csv"]),
    ("groups that are not there", f"{FT} table:table --cv group", ["group"]),
    ("sets that are not there", f"{FT} table:table --cv set", ["SET/NAME", "got 'image_0'"]),
    ("folds of one image", f"{FT} table:table --cv 40", ["a single stimulus each", "--cv 5"]),
    ("one fold of a search", f"{FT} table:table --set ridge__cv=1", ["cv is 1", "at least 2"]),
    ("rows for folds of a search", f"{FT} table:table --set 'ridge__cv=[1, 2]'", ["a list of folds", "[1, 2]"]),
    ("half a fold of a search", f"{FT} table:table --set ridge__cv=2.5", ["cv", "2.5"]),
    ("data of a test split alone", f"{FT} table:table/tested.toml", ["'test'", "'train'", "splits.csv"]),
    ("splits of other ids", f"{FT} table:table/misnamed.toml", ["'image_0'", "such as 'image_0.png'", "extension"]),
    ("no jobs", f"{FT} table:table --jobs 0", ["--jobs"]),
    # features
    ("features to choose from", f"{F} --data table:table", ["grid:2", "mean", "features__reduce"]),
    ("layer that is not cached", f"{FT} table:table --set features__layers=body", ["body", "stem"]),
    ("empty cache", FT.replace("--cache cache", "--cache none") + " table:table", ["none", "extract"]),
    ("images that are not cached", f"{FT} table:split", ["extract"]),
    # runs
    ("run is there", FT.replace("--out new", "--out run") + " table:table", ["run", "--overwrite"]),
    ("run is a file", FT.replace("--out new", "--out ids.csv") + " table:table", ["ids.csv", "folder"]),
    ("prediction of no run", "predict notarun --images images --out new.npz", ["notarun", "run.json"]),
    ("prediction of a missing run", "predict nowhere --images images --out new.npz", ["nowhere", "fit"]),
    ("prediction of a damaged run", "predict damaged --images images --out new.npz", ["run.json", "damaged"]),
    ("wrong ending", "predict run --images images --out new.xlsx", ["new.xlsx", ".npz"]),
    ("code to predict with, without trust", "predict run --images images --out new.npz", ["tiny.py", "--trust"]),
    ("score of training images", "score run --data table:table", ["training", "40 of 40"]),
    ("score of no run", "score notarun --data table:table", ["notarun"]),
    ("score of no predictions", "score embedding.npy --data table:table", ["embedding.npy", "predict"]),
    ("score of a missing file", "score no.npz --data table:table", ["no.npz", "predict"]),
    ("score of a misspelt run", "score rum --data table:table", ["run folder", "rum", "featpipe fit"]),
    ("report of no run", "report notarun", ["notarun"]),
    ("report to a folder", "report run --out images", ["images", "folder", "report.html"]),
    ("too few images for a demo", "demo --images 3", ["--images", "40"]),
    ("unknown zoo of models", "models --zoo keras", ["keras", "timm"]),
    ("unknown command", "fitt", ["fitt"]),
    # RDMs: data
    ("missing challenge folder", f"{RF} algonauts2019:nowhere --target EVC", ["'nowhere'", "Training_Data"]),
    ("challenge folder without a name", f"{RF} algonauts2019: --target EVC", ["algonauts2019:DIR"]),
    ("challenge folder of something else", f"{RF} algonauts2019:images --target EVC",
     ["'images'", "92_Image_Set", "target_fmri.mat"]),
    ("image set without targets", f"{RF} algonauts2019:untold --target EVC", ["no targets", "target_fmri.mat"]),
    ("RDM that is not symmetric", f"{RF} table:own/skew.toml", ["skew.npy", "subject 02", "symmetric", "0, 2"]),
    ("RDM of too few stimuli", f"{RF} table:own/few.toml", ["6 stimuli", "5 rows", "few.npy"]),
    ("RDM never measured", f"{RF} table:own/empty.toml", ["subject 03", "no measured pair", "Leave them out"]),
    ("RDMs and responses", f"{RF} table:own/both.toml", ["both.toml", "rdms", "responses"]),
    ("responses for a recipe of RDMs", f"{RF} table:table", ["baseline_algonauts2019", "responses", "RDMs"]),
    ("RDMs for a recipe of responses", "fit baseline_ridge --data table:own/good.toml --cache rdmcache --out new",
     ["baseline_ridge", "responses", "RDMs"]),
    ("challenge data for a recipe of responses", "fit baseline_ridge --data algonauts2019:rdm --out new",
     ["baseline_ridge", "takes table"]),
    ("RDM target left open", R.replace(" --target EVC", ""), ["--target", "EVC, IT, MEG-early, MEG-late"]),
    ("unknown RDM target", R.replace("EVC", "V1"), ["'V1'", "EVC, IT, MEG-early, MEG-late"]),
    ("unknown RDM subject", f"{R} --subject 9", ["'9'", "01, 02, 03"]),
    ("unknown split of the challenge", RP.replace("test", "validation") + " new.npz",
     ["'validation'", "train and test"]),
    # RDMs: recipes and folds
    ("unknown distance", f"{R} --set rdm__metric=mahalanobis", ["mahalanobis", "correlation, cosine"]),
    ("number for a distance", f"{R} --set rdm__metric=3", ["3", "correlation, cosine"]),
    ("unknown combination", f"{R} --set rdm__combine=stack", ["'stack'", "concatenate", "mean"]),
    ("unknown layer of an RDM", f"{R} --set rdm__layers=tail", ["'tail'", "head"]),
    ("views that are not cached", f"{R} --set features__views=2", ["2 of 2", "--views 2"]),
    ("one fold of RDMs", f"{R} --cv 1", ["1 folds", "2 to 20"]),
    ("more folds than images of a set", f"{R} --cv 21", ["21 folds", "2 to 20"]),
    ("folds by the only set", f"{RF} algonauts2019:rdm/Training_Data/92_Image_Set --target EVC --cv set",
     ["set", "got 1"]),
    ("sets of ids without sets", f"{RF} table:own/good.toml", ["SET/NAME", "'image_0'"]),
    ("RDMs without splits", f"{R} --cv splits", ["'splits'", "splits.csv"]),
    ("mask of a network that is not cached", "fit gaziv2019_channel_mask --data algonauts2019:rdm --target EVC --cache "
     "rdmcache --out new", ["legacy_seresnext50_32x4d", "extract", "tiny.py:build stem:mean"]),
    ("mask of a matrix", f"{G} --set features__output=matrix", ["features__output is 'matrix'", "'blocks'"]),
    ("unknown loss", f"{G} --set mask__loss=l3", ["'l3'", "correlation"]),
    ("unknown solver", f"{G} --set mask__solver=sgd", ["'sgd'", "adam", "lbfgs"]),
    ("unknown resolution", f"{G} --set mask__resolution=pixel", ["'pixel'", "channel", "stage"]),
    ("unknown validation", f"{G} --set mask__validation=all", ["'all'", "stimuli", "pairs"]),
    ("unknown sampling of times", f"{G} --set mask__time_sampling=random", ["'random'", "gaussian"]),
    ("unknown targets to train on", f"{G} --set 'mask__train_on=[\"V1\"]'", ["no V1", "EVC"]),
    ("no epochs", f"{G} --set mask__epochs=0", ["epochs", "0", "at least 1"]),
    ("no pairs in a batch", f"{G} --set mask__batch_size=0", ["batch_size", "0", "at least 1"]),
    ("shrinkage below zero", f"{G} --set mask__shrinkage=-1", ["shrinkage", "-1"]),
    ("more held out than there is", f"{G} --set mask__validation_fraction=2", ["validation_fraction", "2"]),
    # RDMs: runs
    ("table of predicted RDMs", f"{RP} new.csv", ["new.csv", ".npz, .mat"]),
    ("score of RDMs of other images", "score five.npz --data algonauts2019:rdm", ["5 stimuli", "has 6"]),
    ("score of RDMs of another target", "score other.npz --data algonauts2019:rdm", ["V4", "EVC, IT"]),
    ("score of RDMs of a target left out", "score other.npz --data algonauts2019:rdm --target IT",
     ["are of V4", "not of --target IT"]),
    ("score of no square", "score flat.npz --data algonauts2019:rdm", ["EVC_RDMs", "(6,)", "(n_stimuli, n_stimuli)"]),
    ("score of what is not symmetric", "score skew.npz --data table:own/good.toml", ["not symmetric"]),
    ("score of RDMs of training images", "score seen.npz --data table:own/good.toml", ["6 of 6", "training set"]),
    ("score of no RDMs", "score vectors.npy --data algonauts2019:rdm", ["vectors.npy", "EVC_RDMs"]),
    ("score of junk as RDMs", "score junk.zip --data algonauts2019:rdm", ["junk.zip", "truncated"]),
    ("score of a table as RDMs", "score ids.csv --data algonauts2019:rdm", ["ids.csv", ".mat, .npz"]),
    ("score under another target", "score evc --data algonauts2019:rdm --trust --target IT", ["EVC", "--target IT"]),
    ("submission of half a track", f"submit evc {RS} algonauts2019 --out new.zip", ["EVC and IT", "runs of EVC"]),
    ("submission of responses", f"submit run {RS} algonauts2019 --out new.zip", ["run", "responses", "RDMs"]),
    ("submission of no run", f"submit notarun {RS} algonauts2019 --out new.zip", ["notarun", "run.json"]),
    ("submission to another challenge", f"submit evc {RS} algonauts2021 --out new.zip",
     ["algonauts2021", "algonauts2019"]),
    ("submission that is no zip", f"submit evc {RS} algonauts2019 --out new.mat", ["new.mat", ".zip"]),
    # RDMs: layers compared (more in test_compare.py)
    ("comparison with responses", "compare --data table:table --cache cache", ["table:table", "responses", "RDMs"]),
    ("comparison with an unknown target", f"{V} --target V1", ["'V1'", "EVC, IT"]),
    ("comparison by an unknown method", f"{V} --method tau", ["--method", "'tau'", "spearman"]),
    ("comparison of one layer", f"{V} --layers head", ["'head'", "--layers"]),
    ("comparison of one subject", f"{V} --subject 1", ["one subject", "--over stimuli"]),
    ("comparison without a cache", f"{V} --cache none", ["none", "extract"]),
    ("comparison into a file", f"{V} --out ids.csv", ["ids.csv", "folder"]),
    ("comparison into a folder of something else", f"{V} --out images", ["images", "other files"]),
    # tuned networks
    ("tuner without weights", f"{TU} --set tuner__weights=default", ["test_resnet", "random:", "--weights"]),
    ("tuner of an unknown network", f"{TU} --set tuner__model=timm:resnet5O", ["resnet5O", "featpipe models"]),
    ("tuner of an unknown layer", f"{TU} --set tuner__layer=layer9", ["layer9", "layer1"]),
    ("frozen layers that are not there", f"{TU} --set tuner__frozen=..conv5", ["conv5"]),
    ("tuner of an unknown target", f"{TU} --set 'tuner__train_on=[\"V1\"]'", ["no V1", "tuner__train_on", "EVC"]),
    ("tuner that extracts", f"{TU} --extract", ["'tuner'", "nothing has to be extracted", "local:RUN/"]),
    ("extraction for a tuner", "extract --recipe tuner.py --data algonauts2019:rdm --cache new",
     ["'tuner'", "nothing has to be extracted", "local:RUN/"]),
    ("layers of a cache for a tuner", f"{TU} --set features__layers=stem", ["features__layers", "tuner__layer"]),
    ("responses for a tuner of RDMs", TU.replace("algonauts2019:rdm", "table:table"), ["responses", "RDMs"]),
    ("no epochs at all", f"{TU} --set tuner__max_epochs=-1", ["max_epochs", "-1"]),
    ("seed below zero", f"{TU} --set tuner__seed=-1", ["seed", "-1", ">= 0"]),
    ("network tuned to responses without batches", f"{TR} --set tuner__batch_size=0", ["batch_size", "0", ">= 1"]),
    ("network tuned to responses, seed below zero", f"{TR} --set tuner__seed=-1", ["seed", "-1", ">= 0"]),
    ("network tuned to responses, all of it frozen", f"{TR} --set 'tuner__frozen=**' --set tuner__batch_size=16",
     ["nothing to train", "Free a layer", "max_epochs=0"]),
    ("number for a layer of a tuner", f"{TU} --set tuner__layer=3", ["layer", "3", "quoted"]),
    ("number for frozen layers", f"{TU} --set tuner__frozen=3", ["frozen", "3", "..layer3"]),
    ("list for a network", f"{TU} --set 'tuner__model=[\"a\"]'", ["model must be text", "'a'"]),
    ("number for weights", f"{TU} --set tuner__weights=0", ["weights must be text", "0", "random:SEED"]),
    ("one number to rescale by", f"{TU} --set 'tuner__rescale=[2]'", ["rescale", "(offset, divisor)", "[2]"]),
    ("word to rescale by", f"{TU} --set tuner__rescale=half", ["rescale", "(offset, divisor)", "'half'"]),
    ("word for a callback", f"{TU} --set tuner__callback=print", ["callback", "'print'"]),
    ("damaged tuned weights", "extract --model local:spoilt.safetensors --layers layer1 --images images --cache new",
     ["spoilt.safetensors", "not those that were saved"]),
    ("prediction of a tuned run from a cache",
     "predict tuned --images images --out new.npz --cache cache", ["tuned", "no cache", "--cache"]),
    ("prediction with other weights",
     "predict tuned --images images --out new.npz --weights random:1", ["has the weights", "--weights FILE"]),
    ("retention from other weights", "retention tuned --images classes --folds 3 --cache new --weights random:1",
     ["has the weights", "--weights FILE"]),
    ("gain of one run", "compare-runs run", ["at least two", "control"]),
    ("gain of RDMs", "compare-runs run tuned", ["tuned", "predicts RDMs"]),
    ("gain of no run", "compare-runs run notarun", ["notarun", "run.json"]),
    ("gain into another file", "compare-runs run run --out new.txt", ["new.txt", ".csv"]),
    ("retention without a tuner", "retention run --images classes", ["run", "no tuned network"]),
    ("retention of one class", "retention tuned --images classes/many", ["subfolder", "FOLDER/cat"]),
    ("retention of few images", "retention tuned --images classes", ["'few'", "3 images", "--folds 3"]),
    ("retention of an unknown layer",
     "retention tuned --images classes --folds 3 --layer layer9 --cache new", ["layer9", "layer1"]),
    # several subjects and the challenge of 2023
    ("all subjects of one table", f"{X} --images table:table --subject all", ["table:table", "--subject all"]),
    ("a run for every subject of a table", f"{FT} table:table --subject all", ["table:table", "--subject all"]),
    ("one of several subjects unknown", f"{FT} algonauts2023:alg --subject 1,7", ["'7'", "subj01, subj02"]),
    ("target that no subject has", f"{FT} algonauts2023:alg --subject 1,2 --target lh.V9", ["'lh.V9'", "'lh.V1v'"]),
    ("2023 submission of another kind of run", f"{S} run", ["run", "no subject", "subj01, subj02"]),
    ("2023 submission of RDMs", f"{S} evc", ["evc", "RDMs", "subj01"]),
    ("2023 submission of no run", f"{S} notarun", ["notarun", "run.json"]),
    ("2023 submission for other data", f"{S.replace('alg ', 'table:table ')} run",
     ["table:table", "algonauts2023:DIR"]),
    ("2023 submission of a missing folder", f"{S.replace('alg ', 'nowhere ')} run", ["'nowhere'", "subj01"]),
    ("2023 submission of training images", f"{S} run --split train", ["train", "test images"]),
    ("2019 submission of fewer subjects", f"submit evc {RS} algonauts2019 --out new.zip --partial", ["--partial"]),
    ("score of no submission", "score junk.zip --data algonauts2023:alg", ["junk.zip", "subj01/lh_pred_test.npy"]),
    ("scores of several runs of RDMs", "score evc evc --data algonauts2019:rdm --trust", ["evc", "one run at a time"]),
]  # fmt: skip


def _snapshot(root: Path) -> dict[Path, tuple[int, int]]:
    files = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize(("words", "wanted"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(featpipe, world, words, wanted):
    before = _snapshot(world)
    code, out, err = featpipe(words)
    written = _snapshot(world)
    shutil.rmtree(world / "new", ignore_errors=True)
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert [word for word in wanted if word not in err] == [], err
    assert {path: written.get(path) for path in before} == before
    assert {path.name for path in written.keys() - before.keys()} <= LEFT
