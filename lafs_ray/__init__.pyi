from lafs_ray.api.face_model import FaceModel as FaceModel
from lafs_ray.api.face_model import create_model as create_model
from lafs_ray.api.face_model import load as load
from lafs_ray.api.runs import Run as Run
from lafs_ray.api.runs import evaluate as evaluate
from lafs_ray.api.runs import finetune as finetune
from lafs_ray.api.runs import pretrain as pretrain

__version__: str
