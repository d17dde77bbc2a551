"""Medical data sets of the papers."""

from collections.abc import Mapping

from zsad_jax.datasets import readers
from zsad_jax.datasets.entries import Entry, Raw

_CVC = "not stated, research use (Computer Vision Center, UAB)"
_ALL = "test: AdaCLIP, FAPrompt, AdaptCLIP"
_BRAIN = ("brain", "Brain")


def _pairs(class_name: str) -> Raw:
  """Return the layout of colonoscopy sets: two folders of equal names."""
  reader = readers.masked(class_name, "images", "masks")
  return Raw(("images", "masks"), reader, "images/, masks/ of the same names")


ENTRIES: Mapping[str, Entry] = {
  "headct": Entry(
    title="HeadCT",
    folders=("headct", "head_ct", "HeadCT"),
    source="https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
    licence="see Kaggle's page",
    citation="Salehi et al., CVPR 2021",
    counts=(0, 100, 100),
    raw=(Raw(("labels.csv",), readers.head_ct, "labels.csv, head_ct/"),),
    has_masks=False,
    aliases=("headct", "headct2", "HeadCT", *_BRAIN),
    prompt_names={"headct": "brain"},
    used_by="test: AdaCLIP, FAPrompt",
  ),
  "brainmri": Entry(
    title="BrainMRI",
    folders=("brainmri", "brain_mri", "BrainMRI"),
    source="https://www.kaggle.com/datasets/navoneel/"
    "brain-mri-images-for-brain-tumor-detection",
    licence="see Kaggle's page",
    citation="Kanade and Gumaste, 2015",
    counts=(0, 98, 155),
    raw=(
      Raw(("yes", "no"), readers.states("brain_mri", "no", "yes"), "yes/, no/"),
    ),
    has_masks=False,
    aliases=("brain_mri", "brainmri2", "Brain_MRI", *_BRAIN),
    prompt_names={"brain_mri": "brain"},
    used_by="test: AdaCLIP, FAPrompt",
  ),
  "br35h": Entry(
    title="Br35H",
    folders=("br35h", "Br35H"),
    source="https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
    licence="see Kaggle's page",
    citation="Hamada, 2020",
    counts=(0, 1500, 1500),
    raw=(
      Raw(("yes", "no"), readers.states("br35h", "no", "yes"), "yes/, no/"),
    ),
    has_masks=False,
    aliases=("br35h", "br35", "Br35H", *_BRAIN),
    prompt_names={"br35h": "brain"},
    references_from_test=True,
    used_by=_ALL,
  ),
  "covid": Entry(
    title="COVID-19 radiography",
    folders=("covid", "COVID-19_Radiography_Dataset"),
    source="https://www.kaggle.com/datasets/tawsifurrahman/"
    "covid19-radiography-database (first release)",
    licence="see Kaggle's page",
    citation="Chowdhury et al., IEEE Access 2020",
    counts=(0, 1341, 219),
    other_counts={"a later release": (0, 10192, 3616)},
    raw=(
      Raw(
        ("COVID/images", "Normal/images"),
        readers.states("chest", "Normal/images", "COVID/images"),
        "COVID/images/, Normal/images/",
      ),
      Raw(
        ("NORMAL", "COVID*"),
        readers.states("chest", "NORMAL", "COVID*"),
        "NORMAL/, COVID-19/",
      ),
    ),
    has_masks=False,  # Later releases have masks of lungs.
    aliases=("chest",),
    references_from_test=True,
    used_by="test: AdaptCLIP",
  ),
  "lag": Entry(
    title="LAG",
    folders=("lag", "LAG"),
    source="https://github.com/smilell/AG-CNN (on request)",
    licence="academic use, no redistribution",
    citation="Li et al., CVPR 2019",
    counts=(2357, 786, 1711),
    raw=(
      Raw(
        ("suspicious_glaucoma", "non_glaucoma"),
        readers.states(
          "LAG", "non_glaucoma*/image", "suspicious_glaucoma*/image", split=True
        ),
        "suspicious_glaucoma/image/, non_glaucoma/image/",
      ),
    ),
    has_masks=False,  # It comes with attention maps only.
    aliases=("LAG",),
    prompt_names={"LAG": "fundus"},
    used_by="test: FAPrompt",
  ),
  "isic": Entry(
    title="ISIC",
    folders=("isic", "ISIC", "ISBI"),
    source="https://challenge.isic-archive.com/data/ (2016, part 1, test)",
    licence="CC0",
    citation="Gutman et al., 2016",
    counts=(0, 0, 379),
    raw=(
      Raw(
        ("*Test_Data", "*Test_GroundTruth"),
        readers.masked("isic", "*Test_Data", "*Test_GroundTruth"),
        "ISBI2016_ISIC_Part1_Test_Data/, ..._Test_GroundTruth/",
      ),
    ),
    aliases=("isic", "skin", "ISIC"),
    prompt_names={"isic": "skin"},
    used_by="test: AdaCLIP, FAPrompt",
  ),
  "clinicdb": Entry(
    title="CVC-ClinicDB",
    folders=("clinicdb", "CVC-ClinicDB", "ClinicDB"),
    source="CVC-ClinicDB, folders images/ and masks/",
    licence=_CVC,
    citation="Bernal et al., CMIG 2015",
    counts=(0, 0, 612),
    other_counts={"PraNet's test part": (0, 0, 62)},
    raw=(_pairs("ClinicDB"),),
    aliases=("ClinicDB", "colon"),
    prompt_names={"ClinicDB": "colon"},
    used_by="training (AdaCLIP) and test: AdaCLIP, FAPrompt",
  ),
  "colondb": Entry(
    title="CVC-ColonDB",
    folders=("colondb", "CVC-ColonDB", "ColonDB"),
    source="CVC-ColonDB, folders images/ and masks/",
    licence=_CVC,
    citation="Tajbakhsh et al., IEEE TMI 2016",
    counts=(0, 0, 380),
    raw=(_pairs("ColonDB"),),
    aliases=("ColonDB", "colon"),
    prompt_names={"ColonDB": "colon"},
    used_by="training (AdaCLIP) and test: AdaCLIP, FAPrompt",
  ),
  "kvasir": Entry(
    title="Kvasir-SEG",
    folders=("kvasir", "Kvasir-SEG", "Kvasir"),
    source="https://datasets.simula.no/kvasir-seg/",
    licence="research and education",
    citation="Jha et al., MMM 2020",
    counts=(0, 0, 1000),
    other_counts={"PraNet's test part": (0, 0, 100)},
    raw=(_pairs("Kvasir"),),
    lossy_masks=True,
    aliases=("Kvasir", "colon"),
    prompt_names={"Kvasir": "colon"},
    references_from_test=True,
    used_by="test: AdaptCLIP, FAPrompt",
  ),
  "endo": Entry(
    title="EndoTect 2020",
    folders=("endo", "EndoTect_2020_Segmentation_Test_Dataset", "Endo"),
    source="https://endotect.com/ (segmentation, test)",
    licence="research and education",
    citation="Hicks et al., ICPR 2020",
    counts=(0, 0, 200),
    raw=(_pairs("endo"),),
    lossy_masks=True,
    aliases=("endo", "colon"),
    prompt_names={"endo": "colon"},
    references_from_test=True,
    used_by="test: AdaptCLIP, FAPrompt",
  ),
  "tn3k": Entry(
    title="TN3K",
    folders=("tn3k", "TN3K"),
    source="https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-"
    "segmentation",
    licence="research use",
    citation="Gong et al., ISBI 2021",
    counts=(0, 0, 614),
    raw=(
      Raw(
        ("test-image", "test-mask"),
        readers.masked("tn3k", "test-image", "test-mask"),
        "test-image/, test-mask/",
      ),
    ),
    lossy_masks=True,
    aliases=("tn3k", "thyroid"),
    prompt_names={"tn3k": "thyroid"},
    used_by="test: AdaCLIP, FAPrompt",
  ),
}
