"""Three invented corpora, and their files."""

from dataclasses import dataclass, replace

from sani.corpus.documents import Corpus


@dataclass(frozen=True)
class Clinic:
    """Three invented corpora that share nobody."""

    public: Corpus
    private: Corpus
    held_out: Corpus

    def with_few(self, private: int, held_out: int = 2) -> "Clinic":
        """Return the clinic with only its first private and held-out documents."""
        return replace(
            self,
            private=Corpus(self.private[:private]),
            held_out=Corpus(self.held_out[:held_out]),
        )
