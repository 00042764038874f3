"""Three classes as people upload them (https://github.com/SpringWiz11/ML-Proj, folder `dataset`), no patients.

The closest there is to the paper's 3000 images "from the Internet" (§3.2), and a warning: class and source are nearly
one. COVID-19 and 684 normal slices are those of SARS-CoV-2 CT-scan, whose non-COVID class is called normal here; the
other normal ones are of a lung cancer set, and pneumonia is of unknown source, a white body on black.
"""

from covidlib.datasets.sarscov2_ct import load_without_patients

_FOLDERS = {"covid": "covid", "pneumonia": "pneumonia", "normal": "normal"}


def load(root):
    """(manifest, classes, notes, problems); decodes every slice to find near-duplicates."""
    manifest, classes, notes, problems = load_without_patients(root, _FOLDERS, "web-three-class")
    notes.append("Slices of a class come from a source of their own, which pixels show: no accuracy here is evidence "
                 "that disease is recognised. Never train on this set and test on sarscov2-ct, whose slices it holds.")
    return manifest, classes, notes, problems
