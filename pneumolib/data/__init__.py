"""From files to batches: which images there are, who trains, what a network sees of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "drawing": ["draw_radiograph"],
        "synthetic": ["draw_dataset"],
        "manifest": ["Manifest", "read_manifest"],
        "split": ["split_external", "split_manifest", "without_shared"],
        "pixels": ["ImageSet", "grey_distances", "histograms_of", "load_image", "read_images", "subset"],
        "facts": ["STORAGE", "border_table", "describe_images", "fit_ood", "mask_centre", "metadata_features"],
        "corruptions": ["corrupt", "corruption_samples"],
        "augment": ["augment_batch"],
        "batches": ["eval_dataset", "steps_per_epoch", "train_dataset"],
    },
)
