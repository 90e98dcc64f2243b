# shellcheck shell=bash
# Lets MindSpore find NVIDIA's libraries: source it before Python starts. The launchers do so for DEVICE_TARGET=GPU.
#
#   source scripts/gpu_env.sh
#
# The libraries are the packages of requirements-gpu.txt in the environment of PYTHON (default: .venv of this repository,
# else python on PATH). A CUDA_HOME that holds a CUDA 11 is left alone. If all is there it prints nothing; otherwise it
# prints one line and returns 1. docs/gpu.md says what it sets and why.

# Exports CUDA_HOME and LD_LIBRARY_PATH. CUDA_HOME becomes a folder of links, because MindSpore reads versions from what the
# packages do not have: an nvcc whose answer chooses the backend, and libraries with their whole version in their name.
opt_gpu_env() {
  local root python site home entry missing="" stale=""
  # library=package; src/runtime.py has the same list
  local libraries="libcublas.so.11=cublas libcudart.so.11.0=cuda_runtime libcudnn.so.8=cudnn libcufft.so.10=cufft
    libcurand.so.10=curand libcusolver.so.11=cusolver libcusparse.so.11=cusparse libnvrtc.so.11.2=cuda_nvrtc"
  if [[ -n ${CUDA_HOME:-} && (-e $CUDA_HOME/lib64/libcublas.so.11 || -e $CUDA_HOME/lib/libcublas.so.11) &&
    $CUDA_HOME != */opt/cuda-11.6-* ]]; then
    return 0
  fi
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)" || return 1
  python="${PYTHON:-$root/.venv/bin/python}"
  [[ -n ${PYTHON:-} || -x $python ]] || python=python
  if ! site="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2> /dev/null)"; then
    echo "gpu_env.sh: '$python' does not run: set PYTHON to the Python that has MindSpore" >&2
    return 1
  fi
  home="$(printf %s "$site" | cksum)"
  home="${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/opt/cuda-11.6-${home%% *}"
  for entry in $libraries; do
    [[ -e $site/nvidia/${entry#*=}/lib/${entry%=*} ]] || missing+="${missing:+, }${entry%=*}"
    [[ $home/lib64/${entry%=*} -ef $site/nvidia/${entry#*=}/lib/${entry%=*} ]] || stale=1
  done
  if [[ -n $missing ]]; then
    echo "gpu_env.sh: $missing missing: $python -m pip install -r $root/requirements-gpu.txt" \
      "(or set CUDA_HOME to a CUDA 11)" >&2
    return 1
  fi
  if [[ -n $stale || ! -x $home/bin/nvcc ]] && ! opt_make_cuda_home "$home" "$site" "$libraries" 2> /dev/null; then
    echo "gpu_env.sh: cannot write $home: set XDG_CACHE_HOME to a folder for caches" >&2
    return 1
  fi
  export CUDA_HOME="$home"
  case ":${LD_LIBRARY_PATH:-}:" in
    *:"$home/lib64":*) ;;
    *) export LD_LIBRARY_PATH="$home/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" ;;
  esac
}

# opt_make_cuda_home FOLDER SITE_PACKAGES LIBRARIES
opt_make_cuda_home() {
  local entry
  mkdir -p "$1/lib64" "$1/bin" || return
  for entry in $3; do
    ln -sf "$2/nvidia/${entry#*=}/lib/"*.so* "$1/lib64" || return
  done
  # MindSpore's check wants CUDA 11.6, for which its backend is compiled; the libraries of 11.8 serve it
  ln -sf libcudart.so.11.0 "$1/lib64/libcudart.so.11.6.55" || return
  ln -sf libcudnn.so.8 "$1/lib64/libcudnn.so.8.9.6" || return
  printf '#!/bin/sh\necho "Cuda compilation tools, release 11.6, V11.6.55"\n' > "$1/bin/nvcc" && chmod +x "$1/bin/nvcc"
}

opt_gpu_env
