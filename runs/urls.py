from django.urls import path

from runs.views import competitions, experiments, fleet, groups, home, leaderboard, run

urlpatterns = [
    path("", home.home, name="home"),
    path("favicon.ico", home.favicon, name="favicon"),
    path("groups/", groups.group_list, name="groups"),
    path("groups/new/", groups.new_group, name="new_group"),
    path("groups/new/preflight/", groups.preflight_panel, name="preflight"),
    path("groups/<int:pk>/", groups.group_page, name="group"),
    path("groups/<int:pk>/cancel/", groups.cancel, name="cancel_group"),
    path("groups/<int:pk>/rerun/", groups.rerun, name="rerun_group"),
    path("runs/<int:pk>/", run.run_page, name="run"),
    path("runs/<int:pk>/cancel/", run.cancel, name="cancel_run"),
    path("runs/<int:pk>/rerun/", run.rerun, name="rerun_run"),
    path("runs/<int:pk>/attempts/<int:number>/log/", run.log_lines, name="run_log"),
    path("runs/<int:pk>/attempts/<int:number>/log/<str:source>.log", run.raw_log, name="raw_log"),
    path("runs/<int:pk>/attempts/<int:number>/files/<path:path>", run.artifact, name="artifact"),
    path("experiments/<int:pk>/", experiments.experiment_page, name="experiment"),
    path("leaderboard/", leaderboard.page, name="leaderboard"),
    path("leaderboard.csv", leaderboard.as_csv, name="leaderboard_csv"),
    path("competitions/", competitions.competition_list, name="competitions"),
    path("competitions/<str:name>/", competitions.competition_page, name="competition"),
    path("fleet/", fleet.fleet, name="fleet"),
    path("fleet/<str:name>/", fleet.host_page, name="host"),
    path("fleet/<str:name>/drain/", fleet.drain, name="drain"),
    path("fleet/<str:name>/undrain/", fleet.undrain, name="undrain"),
]
