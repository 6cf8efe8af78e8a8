import os
import warnings

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mlebench_web.settings")
# Said of WhiteNoise's static files, which are small. Our own downloads are sent as they are read
# (runs/views/streaming.py).
warnings.filterwarnings("ignore", "StreamingHttpResponse must consume synchronous iterators")
application = get_asgi_application()
