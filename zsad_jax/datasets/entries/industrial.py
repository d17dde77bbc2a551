"""Industrial data sets of the papers.

Counts and layouts are those of the data sets' pages and papers.
"""

from collections.abc import Mapping

from zsad_jax.datasets import elpv, readers
from zsad_jax.datasets.entries import Counts, Entry, Raw

_ALL = "test: AdaCLIP, FAPrompt, AdaptCLIP"
CC_NC = "CC BY-NC-SA 4.0"


def _counts(text: str) -> dict[str, Counts]:
  """Parse "carpet 280/28/89, ..." into counts by category."""
  result = {}
  for row in text.replace("\n", " ").split(","):
    name, counts = row.split()
    train, normal, anomalous = map(int, counts.split("/"))
    result[name] = (train, normal, anomalous)
  return result


_MVTEC = _counts("""bottle 209/20/63, cable 224/58/92, capsule 219/23/109,
    carpet 280/28/89, grid 264/21/57, hazelnut 391/40/70, leather 245/32/92,
    metal_nut 220/22/93, pill 267/26/141, screw 320/41/119, tile 230/33/84,
    toothbrush 60/12/30, transistor 213/60/40, wood 247/19/60,
    zipper 240/32/119""")
_VISA = _counts("""candle 900/100/100, capsules 542/60/100, cashew 450/50/100,
    chewinggum 453/50/100, fryum 450/50/100, macaroni1 900/100/100,
    macaroni2 900/100/100, pcb1 904/100/100, pcb2 901/100/100,
    pcb3 905/101/100, pcb4 904/101/100, pipe_fryum 450/50/100""")
_MPDD = _counts("""bracket_black 289/32/47, bracket_brown 185/26/51,
    bracket_white 110/30/30, connector 128/30/14, metal_plate 54/26/71,
    tubes 122/32/69""")
_BTAD = _counts("01 400/21/49, 02 399/30/200, 03 1000/400/41")
_MVTEC_3D = _counts("""bagel 244/22/88, cable_gland 223/21/87,
    carrot 286/27/132, cookie 210/28/103, dowel 288/26/104, foam 236/20/80,
    peach 361/26/106, potato 300/22/92, rope 298/32/69, tire 210/25/87""")
_DTD = (
  "Blotchy_099",
  "Fibrous_183",
  "Marbled_078",
  "Matted_069",
  "Mesh_114",
  "Perforated_037",
  "Stratified_154",
  "Woven_001",
  "Woven_068",
  "Woven_104",
  "Woven_125",
  "Woven_127",
)
_REAL_IAD = tuple(
  """audiojack bottle_cap button_battery end_cap eraser
    fire_hood mint mounts pcb phone_battery plastic_nut plastic_plug
    porcelain_doll regulator rolled_strip_base sim_card_set switch tape
    terminalblock toothbrush toy toy_brick transistor1 u_block usb usb_adaptor
    vcpill wooden_beads woodstick zipper""".split()
)

ENTRIES: Mapping[str, Entry] = {
  "mvtec": Entry(
    title="MVTec AD",
    folders=("mvtec", "mvtec_anomaly_detection"),
    source="https://www.mvtec.com/company/research/datasets/mvtec-ad",
    licence=CC_NC,
    citation="Bergmann et al., CVPR 2019",
    categories=tuple(_MVTEC),
    counts=(3629, 467, 1258),
    category_counts=_MVTEC,
    mosaic_prob=0.2,  # AdaCLIP, authors' code; every other set has 0.
    used_by=f"training and {_ALL}",
  ),
  "visa": Entry(
    title="VisA",
    folders=("visa", "VisA_20220922", "VisA_pytorch/1cls"),
    source="https://github.com/amazon-science/spot-diff (VisA_20220922.tar)",
    licence="CC BY 4.0",
    citation="Zou et al., ECCV 2022",
    categories=tuple(_VISA),
    counts=(8659, 962, 1200),
    category_counts=_VISA,
    raw=(
      Raw(
        ("split_csv/1cls.csv",),
        readers.visa,
        "split_csv/1cls.csv, <class>/Data/",
      ),
    ),
    prompt_names={
      "chewinggum": "chewing gum",
      "macaroni1": "macaroni",
      "macaroni2": "macaroni",
      **{f"pcb{i}": "printed circuit board" for i in range(1, 5)},
    },
    used_by=f"training (for MVTec AD) and {_ALL}",
  ),
  "mpdd": Entry(
    title="MPDD",
    folders=("mpdd", "MPDD"),
    source="https://github.com/stepanje/MPDD",
    licence="not stated",
    citation="Jezek et al., ICUMT 2021",
    categories=tuple(_MPDD),
    counts=(888, 176, 282),
    category_counts=_MPDD,
    prompt_names={
      "bracket_black": "black bracket",
      "bracket_brown": "brown bracket",
      "bracket_white": "white bracket",
    },
    used_by=_ALL,
  ),
  "btad": Entry(
    title="BTAD",
    folders=("btad", "BTech_Dataset_transformed", "BTAD"),
    source="http://avires.dimi.uniud.it/papers/btad/btad.zip",
    licence=CC_NC,
    citation="Mishra et al., ISIE 2021",
    categories=tuple(_BTAD),
    counts=(1799, 451, 290),
    category_counts=_BTAD,
    prompt_names={
      "01": "industrial product",
      "02": "textured surface",
      "03": "industrial product",
    },
    used_by=_ALL,
  ),
  "ksdd": Entry(
    title="KolektorSDD",
    folders=("ksdd", "KolektorSDD", "SDD"),
    source="https://www.vicos.si/resources/kolektorsdd/",
    licence=CC_NC,
    citation="Tabernik et al., J. Intell. Manuf. 2020",
    counts=(857, 286, 54),
    other_counts={"AnomalyCLIP's release": (0, 181, 74)},
    raw=(
      Raw(
        ("kos*/Part*.jpg",),
        readers.kolektor,
        "kosNN/PartK.jpg and PartK_label.bmp",
      ),
    ),
    aliases=("SDD", "electrical commutators", "electrical_commutators"),
    prompt_names={
      "ksdd": "electrical commutator",
      "SDD": "electrical commutator",
    },
    used_by=_ALL,
  ),
  "dagm": Entry(
    title="DAGM 2007",
    folders=("dagm", "DAGM_KaggleUpload", "DAGM"),
    source="https://zenodo.org/records/12750201",
    licence="see the record",
    citation="Wieler and Hahn, DAGM 2007",
    categories=tuple(f"Class{i}" for i in range(1, 11)),
    counts=(None, 6996, 1054),
    other_counts={"AdaCLIP's balanced split": (0, 2100, 2100)},
    raw=(
      Raw(
        ("Class*/Test/*.[Pp][Nn][Gg]",),
        readers.dagm,
        "ClassN/{Train,Test}/NNNN.PNG, Label/NNNN_label.PNG",
      ),
    ),
    prompt_names={f"Class{i}": "textured surface" for i in range(1, 11)},
    used_by="test: AdaCLIP, FAPrompt",
  ),
  "dtd": Entry(
    title="DTD-Synthetic",
    folders=("dtd", "DTD-Synthetic", "dtd_synthetic"),
    source="the authors' drive, linked from Aota et al.",
    licence="not stated (derived from DTD, research use)",
    citation="Aota et al., WACV 2023",
    categories=_DTD,
    counts=(1200, 357, 947),
    prompt_names={
      name: f"{name.split('_')[0].lower()} texture" for name in _DTD
    },
    used_by=_ALL,
  ),
  "aitex": Entry(
    title="AITEX",
    folders=("aitex", "AITEX", "AFID"),
    source="https://www.aitex.es/afid/",
    licence="not stated, academic use",
    citation="Silvestre-Blanes et al., AUTEX Res. J. 2019",
    counts=(1692, 564, 183),
    raw=(
      Raw(
        ("**/NODefect_images", "**/Mask_images"),
        readers.aitex,
        "Defect_images/, NODefect_images/<fabric>/, Mask_images/",
      ),
    ),
    aliases=("AITEX",),
    prompt_names={"AITEX": "fabric"},
    used_by="test: FAPrompt",
  ),
  "elpv": Entry(
    title="ELPV",
    folders=("elpv", "elpv-dataset"),
    source="pip install elpv-dataset, or "
    "https://github.com/zae-bayern/elpv-dataset",
    licence=CC_NC,
    citation="Buerhop-Lutz et al., EU PVSEC 2018",
    counts=(1131, 377, 715),
    raw=(Raw((elpv.LABELS,), elpv.read, "labels.csv, images/"),),
    has_masks=False,
    aliases=("elpv", "ELPV"),
    prompt_names={"elpv": "solar cell"},
    used_by="test: FAPrompt",
    find_package=elpv.find_package,
  ),
  "mvtec3d": Entry(
    title="MVTec 3D-AD",
    folders=("mvtec3d", "mvtec_3d_anomaly_detection"),
    source="https://www.mvtec.com/company/research/datasets/mvtec-3d-ad",
    licence=CC_NC,
    citation="Bergmann et al., VISAPP 2022",
    categories=tuple(_MVTEC_3D),
    counts=(2656, 249, 948),
    category_counts=_MVTEC_3D,
    raw=(
      Raw(
        ("*/test/*/rgb",), readers.mvtec_3d, "<class>/<part>/<defect>/{rgb,gt}/"
      ),
    ),
    used_by="test: AdaptCLIP",
  ),
  "real_iad": Entry(
    title="Real-IAD",
    folders=("real_iad", "Real-IAD", "realiad"),
    source="https://huggingface.co/datasets/Real-IAD/Real-IAD (on request)",
    licence=CC_NC,
    citation="Wang et al., CVPR 2024",
    categories=_REAL_IAD,
    counts=(36465, 63256, 51329),
    raw=(
      Raw(
        ("realiad_jsons/*.json",),
        readers.real_iad,
        "realiad_jsons/<class>.json, realiad_<size>/<class>/",
      ),
    ),
    prompt_names={
      "vcpill": "pill",
      "pcb": "printed circuit board",
      "transistor1": "transistor",
    },
    used_by="test: AdaptCLIP",
  ),
}
