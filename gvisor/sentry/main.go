// Command sentry is the sandbox process of official builds, gvisor-bin/gvisor_sentry. runsc starts it instead of itself.
package main

import (
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/gvisorbinaries"
	"gvisor.dev/gvisor/runsc/version"
)

var _ = version.Version()

func main() {
	commands := map[util.SubCommand]string{
		new(sentrycmd.Boot):   "internal use only",
		new(sentrycmd.Umount): "internal use only",
	}
	cli.Run(&gvisorbinaries.GvisorSentry, commands, nil)
}
