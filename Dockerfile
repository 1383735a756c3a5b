# Runs the quickstart on a CPU:
#   docker build -t adjointdeis .
#   docker run --rm -v "$PWD/outputs:/app/outputs" adjointdeis
# Any other command follows the name of the image: docker run --rm adjointdeis +experiment=table4 dry_run=true
# Torch alone from an index of CPU builds spares gigabytes of CUDA libraries:
#   docker build --build-arg TORCH_INDEX=<index of CPU builds> -t adjointdeis .
FROM python:3.11-slim
WORKDIR /app
ARG TORCH_INDEX=""
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt ".[experiments,detection,dlib]"
# Whoever runs it owns what it writes; nothing needs the rights of root.
RUN useradd --create-home runner && mkdir outputs && chown runner outputs .
USER runner
ENTRYPOINT ["adjointdeis"]
CMD ["+experiment=quickstart"]
