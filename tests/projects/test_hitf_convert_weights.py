import importlib.util
import io
import pickle
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch.nn import functional as F

from systems import SMALLER
from vis_d2 import add_vis_config
from vis_d2.engine import build_checkpointer, merge_config, prepare_config
from vis_d2.tools._weight_names import detect_source

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "HITF" / "hitf_R_50_ytvis2019_pretrain.yaml")
# The layers and names of R-50, in a few channels; live statistics, as the config has them.
SMALL = {**SMALLER["hitf"], "MODEL.RESNETS.NORM": "BN", "MODEL.HITF.NUM_INTRA": 3}
SMALL["MODEL.RESNETS.STEM_OUT_CHANNELS"] = 4  # fewer than res2's: its first block has a shortcut
SMALL = [str(word) for item in SMALL.items() for word in item]

# Their key and ours. A file of each kind is made by inverse rules that know nothing of the script;
# these names, as the real files have them, keep both honest.
DECODER = "sem_seg_head.decoder."
REAL_NAMES = {
    "torchvision": {
        "conv1.weight": "backbone.stem.conv1.weight",
        "bn1.running_mean": "backbone.stem.conv1.norm.running_mean",
        "layer1.0.downsample.0.weight": "backbone.res2.0.shortcut.weight",
        "layer2.0.downsample.1.running_var": "backbone.res3.0.shortcut.norm.running_var",
        "layer3.5.bn2.bias": "backbone.res4.5.conv2.norm.bias",
        "layer4.2.conv3.weight": "backbone.res5.2.conv3.weight",
    },
    "msra": {
        "conv1_w": "backbone.stem.conv1.weight",
        "res_conv1_bn_s": "backbone.stem.conv1.norm.weight",
        "res2_0_branch1_w": "backbone.res2.0.shortcut.weight",
        "res4_5_branch2a_bn_b": "backbone.res4.5.conv1.norm.bias",
        "res5_2_branch2c_w": "backbone.res5.2.conv3.weight",
    },
    "kmax": {
        "backbone.stem.conv1.norm.bias": "backbone.stem.conv1.norm.bias",
        "backbone.res5.1.conv2.weight": "backbone.res5.1.conv2.weight",
    },
    "deeplabv3plus": {
        DECODER + "res2.project_conv.weight": "decoder.decoder.res2.project_conv.weight",
        DECODER + "res2.fuse_conv.1.norm.running_var": (
            "decoder.decoder.res2.fuse_conv.1.norm.running_var"
        ),
        DECODER + "res5.project_conv.convs.2.weight": (
            "decoder.decoder.res5.project_conv.convs.2.weight"
        ),
        DECODER + "res5.project_conv.convs.4.1.bias": (
            "decoder.decoder.res5.project_conv.convs.4.1.bias"
        ),
        DECODER + "res5.project_conv.project.norm.weight": (
            "decoder.decoder.res5.project_conv.project.norm.weight"
        ),
    },
}
REASONS = {
    "torchvision": ["dropped 53 (bn1.num_batches_tracked …): counters", "(fc.weight …): the class"],
    "msra": ["(fc1000_w …): the classifier", "dropped 1 (conv1_b): a bias before"],
    "kmax": ["dropped 3 (sem_seg_head.pixel_decoder.a.weight …): decoders of another model"],
    "deeplabv3plus": [
        "dropped 2 (sem_seg_head.predictor.weight …): the classes of another",
        "dropped 2 (backbone.stem.conv3.weight …): of another depth and stem",
    ],
}


@pytest.fixture(scope="module")
def script():
    path = ROOT / "projects" / "HITF" / "convert_weights.py"
    spec = importlib.util.spec_from_file_location("hitf_convert_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkpointer():
    cfg = get_cfg()
    add_vis_config(cfg)
    merge_config(cfg, CONFIG, ["MODEL.DEVICE", "cpu", "SEED", "0", *SMALL])
    prepare_config(cfg)
    return build_checkpointer(cfg, build_model(cfg))


@pytest.fixture(scope="module")
def ours():
    """State of a small HITF with numbers a network may have; each is another."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in checkpointer().model.state_dict().items():
        drawn = torch.rand(value.shape, generator=generator)
        if value.dim() == 4:
            drawn = (drawn - 0.5) * 4 / value[0].numel() ** 0.5
        elif key.endswith("running_var") or key.endswith("norm.weight"):
            drawn = drawn + 0.5
        state[key] = drawn
    return state


def body(state):
    prefix = "backbone."
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def counters(state):
    return {
        key.replace("running_var", "num_batches_tracked"): torch.tensor(7)
        for key in state
        if key.endswith("running_var")
    }


def as_torchvision(state):
    theirs = {}
    for key, value in body(state).items():
        if key.endswith("num_batches_tracked"):
            continue
        key = key.replace("stem.", "").replace("shortcut.norm", "downsample.1")
        key = key.replace("shortcut", "downsample.0")
        key = re.sub(r"conv(\d)\.norm", r"bn\1", key)
        theirs[re.sub(r"^res(\d)", lambda found: f"layer{int(found[1]) - 1}", key)] = value
    theirs.update(counters(theirs))
    return {**theirs, "fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}


def as_msra(state):
    layers = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    theirs = {"fc1000_w": torch.zeros(1000, 8), "fc1000_b": torch.zeros(1000)}
    theirs["conv1_b"] = torch.zeros(4)
    for key, value in body(state).items():
        if "running" in key or "tracked" in key:  # folded into weight and bias
            continue
        stage, *block, part = key.replace(".norm", "").split(".")
        part = {"weight": "s", "bias": "b"}[part] if ".norm." in key else "w"
        norm = "bn_" if ".norm." in key else ""
        if stage == "stem":
            theirs[f"{'res_' if norm else ''}conv1_{norm}{part}"] = value
        else:
            theirs[f"{stage}_{block[0]}_{layers[block[1]]}_{norm}{part}"] = value
    return theirs


def as_kmax(state):
    heads = ["sem_seg_head.pixel_decoder.a.weight", "sem_seg_head.predictor.b.bias"]
    heads.append("criterion.empty_weight")
    theirs = {f"backbone.{k}": v for k, v in body(state).items() if "tracked" not in k}
    return {**theirs, **{key: torch.zeros(2) for key in heads}}


def as_deeplabv3plus(state):
    theirs = {
        key.replace("decoder.decoder.", DECODER): value
        for key, value in state.items()
        if key.startswith("decoder.") and "tracked" not in key
    }
    others = ["sem_seg_head.predictor.weight", "sem_seg_head.predictor.bias"]
    others += ["backbone.stem.conv3.weight", "backbone.res4.22.conv1.weight"]
    return {**theirs, **{key: torch.zeros(2) for key in others}}


FILES = {
    "torchvision": as_torchvision,
    "msra": as_msra,
    "kmax": as_kmax,
    "deeplabv3plus": as_deeplabv3plus,
}


def run(script, folder, state, *args):
    """Convert on the command line; the path of the new file and what was said."""
    source, output = folder / "theirs.pth", folder / "new" / "ours.pth"
    torch.save({"model": state}, source)
    said = io.StringIO()
    with redirect_stdout(said):
        script.main([str(source), "--config-file", CONFIG, "--output", str(output), *args, *SMALL])
    return output, said.getvalue()


@pytest.fixture(scope="module")
def converted(script, ours, tmp_path_factory):
    """kind -> path of the new file, and what was said."""
    return {
        kind: run(script, tmp_path_factory.mktemp(kind), make(ours)) for kind, make in FILES.items()
    }


@pytest.mark.parametrize("kind", FILES)
def test_every_tensor_arrives_at_its_key_or_is_named(ours, converted, kind):
    theirs = FILES[kind](ours)
    for key, our_key in REAL_NAMES[kind].items():
        assert torch.equal(theirs[key], ours[our_key]), key
    path, said = converted[kind]
    assert f"theirs.pth: {kind}\n" in said and f"wrote {path}" in said
    new = torch.load(path, weights_only=True)["model"]

    part = "decoder." if kind == "deeplabv3plus" else "backbone."
    expected = {k for k in ours if k.startswith(part) and not k.endswith("num_batches_tracked")}
    if kind == "msra":
        expected = {key for key in expected if "running" not in key}
    assert set(new) == expected
    assert all(torch.equal(new[key], ours[key]) for key in expected)

    dropped = sum(int(number) for number in re.findall(r"^dropped (\d+) ", said, re.M))
    assert dropped + len(expected) == len(theirs)
    assert f"of the file's {len(expected)} tensors" in said and "unexpected: none" in said
    assert all(reason in said for reason in REASONS[kind])
    assert re.search(r"^layers of slots: \d+ tensors are not in the file$", said, re.M)
    assert ("decoder: " in said) == (kind != "deeplabv3plus")


def plain_resnet(weights, x):
    """ResNet-50 by the names of torchvision, its last stage with holes instead of a stride."""

    def unit(x, conv, norm, **options):
        statistics = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var"))
        factors = (weights[f"{norm}.{part}"] for part in ("weight", "bias"))
        x = F.conv2d(x, weights[f"{conv}.weight"], **options)
        return F.batch_norm(x, *statistics, *factors, eps=1e-5)

    x = F.relu(unit(x, "conv1", "bn1", stride=2, padding=3))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for i in range(blocks):
            name = f"layer{stage}.{i}."
            stride = 2 if i == 0 and stage in (2, 3) else 1
            holes = 2 if stage == 4 else 1
            y = F.relu(unit(x, f"{name}conv1", f"{name}bn1"))
            options = {"stride": stride, "padding": holes, "dilation": holes}
            y = unit(F.relu(unit(y, f"{name}conv2", f"{name}bn2", **options)),
                     f"{name}conv3", f"{name}bn3")  # fmt: skip
            if i == 0:
                x = unit(x, f"{name}downsample.0", f"{name}downsample.1", stride=stride)
            x = F.relu(x + y)
    return x


@torch.no_grad()
def test_the_model_starts_as_the_plain_resnet(ours, converted):
    """The layers of slots between the blocks change nothing yet."""
    loader = checkpointer()
    loader.load(str(converted["torchvision"][0]))
    frames = torch.randn(2, 3, 49, 65, generator=torch.Generator().manual_seed(1))
    features = loader.model.eval().encode(frames, [(49, 65), (40, 65)])
    expected = plain_resnet(as_torchvision(ours), frames)
    assert features.pixels.shape == expected.shape == (2, 64, 4, 5)
    assert expected.std() > 1e-2
    torch.testing.assert_close(features.pixels, expected, rtol=1e-4, atol=1e-5)


def test_a_decoder_is_laid_onto_a_backbone(script, ours, converted, tmp_path):
    base, _ = converted["torchvision"]
    state = torch.load(base, weights_only=True)["model"]
    newer = {"decoder.decoder.res2.project_conv.weight": torch.zeros(1)}  # of the earlier file
    torch.save({"model": {**state, **newer}}, tmp_path / "base.pth")
    path, said = run(script, tmp_path, as_deeplabv3plus(ours), "--onto", str(tmp_path / "base.pth"))
    new = torch.load(path, weights_only=True)["model"]
    decoder = torch.load(converted["deeplabv3plus"][0], weights_only=True)["model"]
    assert set(new) == set(state) | set(decoder)
    assert all(torch.equal(value, ours[key]) for key, value in new.items())
    assert f"base.pth: {len(state)} more tensors" in said


def test_settings_that_the_weights_were_not_trained_with_are_named(converted):
    said = {kind: text for kind, (_, text) in converted.items()}
    assert "but the config has" not in said["torchvision"] + said["deeplabv3plus"]
    assert "MODEL.PIXEL_MEAN [127.5, 127.5, 127.5], but the config has [123.675" in said["kmax"]
    assert "INPUT.FORMAT" not in said["kmax"]  # RGB in both
    assert "INPUT.FORMAT BGR, but the config has RGB" in said["msra"]
    assert "MODEL.RESNETS.NORM FrozenBN, but the config has BN" in said["msra"]


def test_pickles_need_permission(script, ours, tmp_path, capsys):
    source, output = tmp_path / "R-50.pkl", tmp_path / "R-50.pth"
    with open(source, "wb") as file:
        pickle.dump({key: value.numpy() for key, value in as_msra(ours).items()}, file)
    args = [str(source), "--config-file", CONFIG, "--output", str(output)]
    with pytest.raises(ValueError, match="R-50.pkl is a pickle.*--allow-pickle"):
        script.main([*args, *SMALL])
    script.main([*args, "--allow-pickle", *SMALL])
    new = torch.load(output, weights_only=True)["model"]
    key = "backbone.res3.1.conv2.norm.weight"
    assert torch.equal(new[key], ours[key]) and "R-50.pkl: msra" in capsys.readouterr().out


def test_copies_of_torchvision_by_detectron2_are_known(script, ours):
    keys = list(body(ours)) + ["stem.fc.weight"]
    assert detect_source(keys, script.SOURCES) == "torchvision"
    (rule,) = [r for r in script.SOURCES["torchvision"].rules if re.fullmatch(r[0], "res5.0.conv2")]
    assert re.fullmatch(rule[0], "res5.0.conv2").expand(rule[1]) == "backbone.res5.0.conv2"


@pytest.mark.parametrize("key", ["backbone.bottom_up.res2.0.conv1.weight", "encoder._stage5.w"])
def test_other_models_are_refused(script, tmp_path, key):
    with pytest.raises(ValueError, match="not the names of deeplabv3plus, kmax, torchvision, msra"):
        run(script, tmp_path, {key: torch.zeros(1)})
