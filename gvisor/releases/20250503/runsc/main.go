// Command runsc is gVisor's own runsc of 2025, with the main function of its module.
package main

import (
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/version"
)

// build.sh sets version.version by -ldflags, which works only for a package that is linked in.
var _ = version.Version()

func main() { cli.Main() }
