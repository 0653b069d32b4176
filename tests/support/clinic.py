"""Three invented corpora, and their files."""

from dataclasses import dataclass

from sani.corpus.documents import Corpus


@dataclass(frozen=True)
class Clinic:
    """Three invented corpora that share nobody."""

    public: Corpus
    private: Corpus
    held_out: Corpus
