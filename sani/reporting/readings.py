"""Sentences on how to read the tables and charts of the report, by the section's key."""

READINGS = {
    "summary": (
        "Read each row from left to right: after should be as near to the base as the limit says, "
        "and before far above both."
    ),
    "limits": (
        "One NO is enough for the gate not to hold; positive_control must say yes before any other "
        "row means anything."
    ),
    "tried": "Each row is one attempt; the first one that holds is the one that was kept.",
    "recited": (
        "Compare after with the base in the same column: intervals that overlap are not told apart."
    ),
    "labels": (
        "A label whose mark after lies to the right of the base's mark is still given away; look "
        "at the top rows first."
    ),
    "subjects": (
        "In a clean checkpoint nearly all subjects stand under none; every count further right is "
        "a person of whom more comes up."
    ),
    "worst": "A row with 0 after says that nothing is extractable even of this subject.",
    "log_prob_scatter": (
        "Dots on the line are what the base knows too; a cloud above the line is memory, however "
        "silent it is."
    ),
    "preference": (
        "A point inside the control's band is no memory; one to the right of it prefers the true "
        "values."
    ),
    "queries": (
        "A curve that rises further left needs fewer samples; after should run along the base's."
    ),
    "memory": (
        "Judge by the uncued rows: a high figure of cued rows tells that the text gives the value "
        "away."
    ),
    "rounds": "Remaining should fall from round to round; where it does not, stop.",
    "onion": (
        "A large count under first seen says that this stage brought up what was hidden before."
    ),
    "new": "These were not extractable before: an empty list is what you want.",
    "beyond_control": "Only these count as memory: the base does not give them.",
    "kept": "Of these, what the base gives too is no memory; the list above has the others.",
    "ripples": (
        "Near should be a small part of newly extractable; otherwise the stage also "
        "changes what stands around the values that it removes."
    ),
    "membership": (
        "An AUC whose interval holds 0.5 cannot tell members from others; compare after with the "
        "base."
    ),
    "generation": "Only what is not from the base is memory; a curve that still rises hides more.",
    "pretraining": "The base may have read these: compare with the base, not with zero.",
    "depth": "1 is as deep as if the model had never been trained on the records, 0 is not at all.",
    "attacks": "Compare each row with the base under the same attack, never with zero.",
    "relearning": (
        "A curve that rises faster than the base's says that the values were silent, and not gone."
    ),
    "leak-at-k": "A small p says that real samples and the closed form do not agree.",
    "erase": "A share of 100 % is a part that was reset whole; others keep what was not chosen.",
    "privacy-neurons": "Layers with many neurons are those where the selector sees the values.",
    "repair": (
        "ordinary should fall until it levels out; an anchor that rises at the end asks for more "
        "weight or fewer steps."
    ),
    "repair-epochs": "The first epoch with every figure below its limit would have been enough.",
    "utility": "A perplexity after that is not above before, times the limit, has kept the skill.",
    "cost": "Another run of this recipe on this machine takes about as long.",
    "memory_use": "The largest row is what a machine must have free for this recipe.",
    "provenance": "Two runs compare only if recipe, corpus and base have the same digests.",
    "scan": "What a row misses is trained on as ordinary text, and no other figure shows it.",
    "threats": "A row that says not tested is open: nothing in this report speaks of it.",
    "evidence": "The last column says what remains to be answered by other means.",
}


def reading_of(key: str) -> str:
    """Return the sentence below the table or chart of a section."""
    return READINGS["worst" if key.startswith("worst-") else key]
