"""Addresses of the public sets that need no login, and instructions for the others."""

from dataclasses import dataclass
from pathlib import PurePosixPath

_UCSD = "https://github.com/UCSD-AI4H/COVID-CT/raw/master/"
_MD = "https://github.com/ShahinSHH/COVID-CT-MD/raw/main/"


@dataclass(frozen=True)
class Remote:
    """A file at `url` that goes to `into`; a zip archive is unpacked there, if `into` has no suffix."""

    url: str
    into: str
    known_hash: str | None = None

    @property
    def packed(self):
        return not PurePosixPath(self.into).suffix


@dataclass(frozen=True)
class Set:
    """`files` to fetch, at most `gigabytes` when unpacked; the `source` and `licence` for people; `hashed`: a list
    of the images' sha256 is shipped as covidlib/datasets/splits/<name>.csv."""

    files: tuple[Remote, ...]
    gigabytes: float
    source: str
    licence: str
    hashed: bool = False


_LISTS = {
    "COVID/testCT_COVID": "39a840012d648b0bacead20300c41413402117a67eb2ac5d9c9bc7c8f8b71474",
    "COVID/trainCT_COVID": "3d448eb4cc63a7396ecd450c54c2620b7779ec85310c73b47aa29d8b91cdbc1e",
    "COVID/valCT_COVID": "4dd20c66e465a4cabd8e3e5625c83300c8938516d782f3d04761ded13eac124c",
    "NonCOVID/testCT_NonCOVID": "9de2786eb411bdbeff546148106640e659596927825241e80ba3521b159c3a01",
    "NonCOVID/trainCT_NonCOVID": "e628fa215718c258116e54165b1aa640c65fbc8b2db325c4aa2f0089cc0040be",
    "NonCOVID/valCT_NonCOVID": "2d5d2078b614fecd04a4fb33648c2b3f83adc9309899e9d53c3e61a1ac7a8a13",
}
SETS = {
    "ucsd-covid-ct": Set((
        *(Remote(f"{_UCSD}Images-processed/{name}.zip", "Images-processed") for name in ("CT_COVID", "CT_NonCOVID")),
        *(Remote(f"{_UCSD}Data-split/{name}.txt", f"Data-split/{name}.txt", f"sha256:{digest}")
          for name, digest in _LISTS.items()),
    ), 1, "https://github.com/UCSD-AI4H/COVID-CT",
        "The pictures belong to the authors of the papers they were cut from.", hashed=True),
    # MD5 as figshare states it for this file of 11,273,767,727 bytes
    "covid-ct-md": Set((
        Remote("https://ndownloader.figshare.com/files/26069987", ".", "md5:7cd2a4fdc7b1348c093b9a384d4b2240"),
        Remote(f"{_MD}Index.csv", "Index.csv"),
        Remote(f"{_MD}Slice-level-labels-updated-1.npy", "Slice-level-labels-updated-1.npy"),
    ), 60, "https://github.com/ShahinSHH/COVID-CT-MD",
        "Its licence is on its figshare page (12991592): read it before you use the set."),
}
BY_HAND = {
    "sarscov2-ct": "Kaggle asks for a login (licence CC BY-NC-SA 4.0). Get the archive from "
        "https://www.kaggle.com/datasets/plameneduardo/sarscov2-ctscan-dataset and unpack it so that {root} holds the "
        "folders COVID and non-COVID.",
    "sarscov2-ct-multiclass": "Kaggle asks for a login. Get the archive from "
        "https://www.kaggle.com/datasets/plameneduardo/a-covid-multiclass-dataset-of-ct-scans and unpack it so that "
        "{root} holds the folders Covid, Healthy and Others.",
    "covidx-ct": "Kaggle asks for a login, and every collection in it has a licence of its own. Get the version you "
        "want from https://www.kaggle.com/datasets/hgunraj/covidxct and unpack it so that {root} holds the folder "
        "3A_images (or 2A_images), the label files train_COVIDx_CT-3A.txt, val_COVIDx_CT-3A.txt, "
        "test_COVIDx_CT-3A.txt and metadata.csv.",
    "covid-ctset": "It comes in several large archives (licence CC BY-NC 4.0). Get Train&Validation, or the whole set, "
        "as https://github.com/mr7495/COVID-CTset says, and unpack it with its folders into {root}.",
    "composition": "It is put together from other sets. Fetch each of them into a folder of its own name in {root}.",
    "folder": "These are your own images. Put them into {root}, a folder per class.",
    "phantom": "Phantoms are drawn, not fetched: leave data_root empty.",
}
