# SPDX-License-Identifier: Apache-2.0
# patience.sh: how long tests wait for what ought to happen; sourced by check.sh and the tests.
#
# The seconds that they name are those of an idle machine. All get twice as many, and a busy machine as
# many times more as it has processes for each processor. PATIENCE=N: N times as many, whatever the load.
# shellcheck shell=bash
processors=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

# patience SECONDS: as many as the machine takes now
patience() {
	local load rest
	read -r load rest </proc/loadavg
	echo $(($1 * ${PATIENCE:-$((2 + ${load%.*} / processors))}))
}

# in_time SECONDS COMMAND...: ends it (124) where that takes longer
in_time() {
	local limit
	limit=$(patience "$1")
	shift
	timeout -s KILL "$limit" "$@"
}
